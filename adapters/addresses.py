"""When two mail addresses are one: a single function decides, and its result is the unique key in the database."""

import unicodedata
from functools import lru_cache

import idna

from domain.refusals import Fault, InvalidInput


def email_key(address: str) -> str:
    """Local part by NFKC and case folding, domain by IDNA 2008 with UTS 46 mapping.

    Raises `InvalidInput` for a domain that no name server could know. The key is for comparing alone: mail goes to
    the stored address, never to a key or to what somebody typed.
    """
    local, _, domain = address.rpartition("@")
    try:
        return f"{_folded(local)}@{_ascii(domain)}"
    except (idna.IDNAError, UnicodeError):
        raise InvalidInput([Fault("email", "not_an_address", "The domain is not valid.")]) from None


@lru_cache(maxsize=1000)
def _ascii(domain: str) -> str:
    return idna.encode(domain, uts46=True, transitional=False).decode().lower()


def _folded(text: str) -> str:
    """Fold until nothing changes: NFKC can bring out letters that fold again."""
    for _ in range(4):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        if folded == text:
            break
        text = folded
    return text


def email_prefix(text: str) -> str:
    """What the keys of all addresses that begin so begin with; half a domain is read as it stands."""
    try:
        return email_key(text) if "@" in text else _folded(text)
    except InvalidInput:
        return _folded(text)
