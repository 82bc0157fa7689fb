"""Password hashes from elsewhere: bcrypt, and Django's PBKDF2, scrypt and prefixed forms.

Each names its own cost, which is held against our ceilings before anything is run; argon2id takes their place when
their owner signs in.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from functools import partial

import bcrypt
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error

from adapters.settings import ARGON2_KIB_MAX, ARGON2_LANES_MAX, ARGON2_PASSES_MAX, ARGON2_WORK_MAX

# Ceilings: about a second of one core each, and never more memory than argon2id may take.
_BCRYPT_ROUNDS_MAX = 14
_PBKDF2_ITERATIONS_MAX = 2_000_000
_SCRYPT_WORK_MAX = 2**21
"""N times r times p; twice what OWASP asks for."""
_SCRYPT_BLOCK_MAX = 64
_SCRYPT_LANES_MAX = 16

_ENCODED_CHARS_MAX = 512
_ARGON2 = re.compile(
    r"\$argon2(?:id|i|d)\$(?:v=(?:16|19)\$)?m=(\d{1,9}),t=(\d{1,9}),p=(\d{1,9})"
    r"\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,128})"
)
# The last character of salt and hash holds bits that must be zero.
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_FORM = re.compile(
    r"(?:bcrypt(?:_sha256)?\$)?\$2[aby]\$\d\d\$|(?:argon2)?\$argon2(?:id|i|d)\$(?:v=\d+\$)?m=\d+,t=\d+,p=\d+\$"
    r"|(?:pbkdf2_sha256|pbkdf2_sha1|scrypt)\$\d+\$"
)
_NUMBER = re.compile(r"[1-9]\d{0,8}")

_argon2 = PasswordHasher()

Check = Callable[[bytes], bool]


def is_importable(encoded: str) -> bool:
    """Is this a hash that a sign-in can check, at a cost that we bear?"""
    return check_of(encoded) is not None


def form_of(encoded: str) -> str | None:
    """How the text of a hash begins, up to its salt: its kind and its cost. None for a kind that we do not check."""
    found = _FORM.match(encoded)
    return found and found[0]


def check_of(encoded: str) -> Check | None:
    """What decides of a password; None for a text of a kind, a form or a cost that we do not run."""
    if len(encoded) > _ENCODED_CHARS_MAX or not encoded.isascii():
        return None
    kind, _, rest = encoded.partition("$")
    try:
        if kind in {"", "argon2", "bcrypt"}:
            modular = f"${rest}" if kind != "bcrypt" else rest
            return _bcrypt(modular) if modular.startswith("$2") else _argon2id(modular)
        return _DJANGO[kind](*rest.split("$")) if kind in _DJANGO else None
    except (ValueError, TypeError):  # numbers that are none, parts too many or too few
        return None


def _argon2id(encoded: str) -> Check | None:
    found = _ARGON2.fullmatch(encoded)
    if found is None or any(len(part) % 4 == 1 for part in found.group(4, 5)):
        return None
    memory_kib, passes, lanes = (_number(part) for part in found.group(1, 2, 3))
    if not 8 * lanes <= memory_kib <= ARGON2_KIB_MAX or memory_kib * passes > ARGON2_WORK_MAX:
        return None
    if passes > ARGON2_PASSES_MAX or lanes > ARGON2_LANES_MAX:  # each pass starts a thread for each lane, four times
        return None

    def check(password: bytes) -> bool:
        try:
            return _argon2.verify(encoded, password)
        except Argon2Error:
            return False

    return check


def _bcrypt(encoded: str) -> Check | None:
    """bcrypt reads 72 bytes and no more, wherever the hash was made: so does this, instead of refusing longer ones."""
    found = _BCRYPT.fullmatch(encoded)
    if found is None or not 4 <= int(found[1]) <= _BCRYPT_ROUNDS_MAX:
        return None

    def check(password: bytes) -> bool:
        try:
            return bcrypt.checkpw(password[:72], encoded.encode())
        except ValueError:  # a form that only the library knows to be wrong
            return False

    return check


def _bcrypt_of_sha256(*parts: str) -> Check | None:
    check = _bcrypt("$".join(parts))
    return None if check is None else lambda password: check(hashlib.sha256(password).hexdigest().encode())


def _pbkdf2(algorithm: str, iterations: str, salt: str, digest: str) -> Check | None:
    count, wanted = _number(iterations), base64.b64decode(digest, validate=True)
    if count > _PBKDF2_ITERATIONS_MAX or len(wanted) != hashlib.new(algorithm).digest_size:
        return None
    return lambda password: hmac.compare_digest(hashlib.pbkdf2_hmac(algorithm, password, salt.encode(), count), wanted)


def _scrypt(n: str, salt: str, r: str, p: str, digest: str) -> Check | None:
    cost, block, lanes = _number(n), _number(r), _number(p)
    wanted = base64.b64decode(digest, validate=True)
    is_power = cost > 1 and cost & (cost - 1) == 0 and cost.bit_length() <= 16 * block  # N < 2^(128 r / 8): RFC 7914
    if not is_power or len(wanted) != 64 or cost * block * lanes > _SCRYPT_WORK_MAX:
        return None
    if block > _SCRYPT_BLOCK_MAX or lanes > _SCRYPT_LANES_MAX or cost * block > ARGON2_KIB_MAX * 8:
        return None
    memory = 128 * block * (cost + lanes + 2)

    def check(password: bytes) -> bool:
        found = hashlib.scrypt(password, salt=salt.encode(), n=cost, r=block, p=lanes, maxmem=memory * 2, dklen=64)
        return hmac.compare_digest(found, wanted)

    return check


def _number(text: str) -> int:
    """A positive number of at most nine digits; raises `ValueError`."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return int(text)


_DJANGO: dict[str, Callable[..., Check | None]] = {
    "bcrypt_sha256": _bcrypt_of_sha256,
    "pbkdf2_sha256": partial(_pbkdf2, "sha256"),
    "pbkdf2_sha1": partial(_pbkdf2, "sha1"),
    "scrypt": _scrypt,
}
