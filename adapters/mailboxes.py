"""Mail addresses and mail servers as they are written: exactly one of them, or a `ValueError` that repeats nothing."""

import re
from contextlib import suppress
from email.headerregistry import Address
from urllib.parse import SplitResult, urlsplit

import idna

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]+"
_LOCAL_PART = re.compile(rf"{_ATEXT}(\.{_ATEXT})*")
# `EmailMessage` lets a line break at a value's end pass, and decodes `=?…?=` into one that it then writes out.
UNSAFE_IN_HEADER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|=\?")
_SENDER = re.compile(r'(?P<name>[^"(),:;<>@\[\\\]]*)<(?P<address>[^<>]+)>|(?P<bare>[^<>]+)')
_LOCAL_PART_BYTES_MAX = 64


def mailbox(address: str) -> str:
    """The one address written here, its domain in ASCII; anything else is a ValueError that does not repeat it."""
    local_part, _, domain = address.rpartition("@")
    if (
        not _LOCAL_PART.fullmatch(local_part)
        or not local_part.isprintable()
        or len(local_part.encode()) > _LOCAL_PART_BYTES_MAX
        or UNSAFE_IN_HEADER.search(local_part)
    ):
        raise ValueError("not exactly one mail address")
    return f"{local_part}@{mail_domain(domain)}"


def mail_domain(domain: str) -> str:
    """The domain of a mail address in ASCII."""
    try:
        return idna.encode(domain.removesuffix("."), uts46=True, std3_rules=True).decode("ascii")
    except idna.IDNAError:
        raise ValueError("not the domain of a mail address") from None


def mail_server(url: str) -> SplitResult:
    """The parsed address; a fault in it is told without repeating it, for it holds a password."""
    with suppress(ValueError):
        server = urlsplit(url)
        (server.hostname or "").encode("idna")  # else nobody can look it up
        if server.scheme in {"smtp", "smtps"} and server.hostname and server.port != 0:
            return server
    raise ValueError("must read smtp://user:password@host:port or smtps://…")


def sender_of(sender: str) -> Address:
    """The From address, written `Name <address>` or bare; names that may read as further addresses are refused."""
    parts = _SENDER.fullmatch(sender.strip())
    if parts is None or UNSAFE_IN_HEADER.search(sender):
        raise ValueError('not one address, bare or with a name without any of "(),:;@[\\]')
    local_part, _, domain = mailbox(parts["address"] or parts["bare"]).rpartition("@")
    if not local_part.isascii():
        raise ValueError("its address must be ASCII before the @, so that every server takes it")
    return Address((parts["name"] or "").strip(), local_part, domain)
