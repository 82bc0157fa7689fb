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
from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

_ARGON2_KIB_MAX = 1024 * 1024
_ARGON2_WORK_MAX = 4 * 1024 * 1024
"""KiB times passes: some four seconds of one core."""
_BCRYPT_ROUNDS_MAX = 15
_PBKDF2_ITERATIONS_MAX = 3_000_000
_SCRYPT_BYTES_MAX = 256 * 1024 * 1024
_SCRYPT_WORK_MAX = 2**24
"""N times r times p."""
_BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ENCODED_CHARS_MAX = 512

_argon2 = PasswordHasher()


def is_importable(encoded: str) -> bool:
    """Is this a hash that a sign-in can check, at a cost that we bear?"""
    return _check_of(encoded) is not None


def matches(encoded: str, password: str) -> bool:
    """Does the password belong to this hash? False also for one of a kind or a cost that we do not take."""
    check = _check_of(encoded)
    return check is not None and check(password.encode())


Check = Callable[[bytes], bool]


def _check_of(encoded: str) -> Check | None:
    """What decides of a password; None for a text that is no hash of ours to run."""
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
    try:
        cost = extract_parameters(encoded)
    except InvalidHashError:
        return None
    if cost.memory_cost > _ARGON2_KIB_MAX or cost.memory_cost * cost.time_cost > _ARGON2_WORK_MAX:
        return None

    def check(password: bytes) -> bool:
        try:
            return _argon2.verify(encoded, password)
        except (VerifyMismatchError, InvalidHashError, Argon2Error):
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
        except ValueError:  # a salt whose last bits cannot be
            return False

    return check


def _bcrypt_of_sha256(*parts: str) -> Check | None:
    check = _bcrypt("$".join(parts))
    return None if check is None else lambda password: check(hashlib.sha256(password).hexdigest().encode())


def _pbkdf2(algorithm: str, iterations: str, salt: str, digest: str) -> Check | None:
    count, wanted = int(iterations), base64.b64decode(digest, validate=True)
    if not 1 <= count <= _PBKDF2_ITERATIONS_MAX or len(wanted) != hashlib.new(algorithm).digest_size:
        return None
    return lambda password: hmac.compare_digest(hashlib.pbkdf2_hmac(algorithm, password, salt.encode(), count), wanted)


def _scrypt(n: str, salt: str, r: str, p: str, digest: str) -> Check | None:
    cost, block, lanes = int(n), int(r), int(p)
    wanted = base64.b64decode(digest, validate=True)
    is_power = cost > 1 and cost & (cost - 1) == 0
    if not is_power or min(block, lanes) < 1 or len(wanted) != 64 or cost * block * lanes > _SCRYPT_WORK_MAX:
        return None
    memory = 128 * block * (cost + lanes + 2)
    if memory > _SCRYPT_BYTES_MAX:
        return None

    def check(password: bytes) -> bool:
        found = hashlib.scrypt(password, salt=salt.encode(), n=cost, r=block, p=lanes, maxmem=memory * 2, dklen=64)
        return hmac.compare_digest(found, wanted)

    return check


_DJANGO: dict[str, Callable[..., Check | None]] = {
    "bcrypt_sha256": _bcrypt_of_sha256,
    "pbkdf2_sha256": partial(_pbkdf2, "sha256"),
    "pbkdf2_sha1": partial(_pbkdf2, "sha1"),
    "scrypt": _scrypt,
}
