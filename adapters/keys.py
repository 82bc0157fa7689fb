"""Key rings: one for each purpose, every ciphertext, MAC and signature names its key (`v1.<kid>.…`)."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Purpose = Literal["access", "refresh", "idempotency", "personal", "two-factor", "seal"]
SYMMETRIC: tuple[Purpose, ...] = ("refresh", "idempotency", "personal", "two-factor")
ASYMMETRIC: tuple[Purpose, ...] = ("access", "seal")
_VERSION = "v1"


class BadKeys(Exception):
    """The key file cannot be used; the message says why and never quotes it."""


class CannotOpen(Exception):
    """A ciphertext is altered, of another place, or of a key that is gone."""


@dataclass(frozen=True, slots=True)
class Successor:
    """A key that is known to all and takes over at a time (seconds since the epoch)."""

    kid: str
    from_s: float


@dataclass(frozen=True, slots=True)
class Ring:
    """The keys of one purpose; the one in force signs and seals, all of them open and verify.

    A successor stands in the ring before it is used: by then every process has read it, and every gateway that
    caches the JWKS has it too.
    """

    current: str
    keys: Mapping[str, bytes] = field(repr=False)
    successor: Successor | None = None

    @property
    def in_force(self) -> str:
        """The id of the key that signs and seals now."""
        if self.successor is not None and time.time() >= self.successor.from_s:
            return self.successor.kid
        return self.current

    @property
    def key(self) -> bytes:
        return self.keys[self.in_force]


class Keys:
    """All key rings of the program, read again while it runs. Its repr says nothing."""

    def __init__(self, rings: Mapping[str, Ring], path: Path | None = None) -> None:
        self._rings = dict(rings)
        self._path = path
        self._stamp = _stamp_of(path)
        self.generation = 0
        """Rises with every change of the file: what was derived from a key may be of one that is gone."""

    def __repr__(self) -> str:
        return "Keys(***)"

    @property
    def rings(self) -> Mapping[str, Ring]:
        return self._rings

    def ring(self, purpose: Purpose) -> Ring:
        return self._rings[purpose]

    def reload(self) -> bool:
        """Read the file again if it has changed; raises `BadKeys` for one that cannot be used, and keeps the old."""
        stamp = _stamp_of(self._path)
        if self._path is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        self._rings = dict(read_keys(self._path).rings)
        self.generation += 1
        return True

    def seal(self, purpose: Purpose, plain: bytes, *, place: str) -> str:
        """Encrypt (AES-256-GCM) so that only the same `place` (table, column, owner) can open it."""
        ring = self.ring(purpose)
        kid = ring.in_force
        return f"{_VERSION}.{kid}.{encrypt(ring.keys[kid], plain, place)}"

    def open(self, purpose: Purpose, sealed: str, *, place: str) -> bytes:
        version, _, rest = sealed.partition(".")
        kid, _, body = rest.partition(".")
        key = self.ring(purpose).keys.get(kid)
        if version != _VERSION or key is None:
            raise CannotOpen(f"no key {kid[:16]!r} for {purpose}")
        return decrypt(key, body, place)


def _stamp_of(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size) if found else None


def encrypt(key: bytes, plain: bytes, place: str) -> str:
    """AES-256-GCM under a fresh nonce, bound to a place; URL-safe text."""
    nonce = os.urandom(12)
    return b64(nonce + AESGCM(key).encrypt(nonce, plain, place.encode()))


def decrypt(key: bytes, body: str, place: str) -> bytes:
    """The plain bytes; raises `CannotOpen` for another key or place, or an altered text."""
    try:
        raw = unb64(body)
        return AESGCM(key).decrypt(raw[:12], raw[12:], place.encode())
    except (InvalidTag, ValueError) as error:
        raise CannotOpen(f"a ciphertext of {place.split(':', maxsplit=1)[0]} does not open") from error


def mac(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA-256 over length-prefixed parts."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def derive(secret: bytes, purpose: str) -> bytes:
    """A key of 256 bits from a secret that has at least as many (HKDF, RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret)


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that a JWK shows as `x`."""
    return private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def b64(raw: bytes) -> str:
    """URL-safe base64 without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The bytes of such a text; raises `ValueError` for another."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def new_keys() -> dict[str, dict[str, object]]:
    """Fresh rings of one random key each, in the form of the key file."""
    return {purpose: _new_ring() for purpose in (*ASYMMETRIC, *SYMMETRIC)}


def _new_ring() -> dict[str, object]:
    kid = secrets.token_hex(4)
    return {"current": kid, "keys": {kid: b64(os.urandom(32))}}


def write_keys(path: Path) -> None:
    """Make a key file, readable by its owner alone; refuses to touch one that is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(new_keys(), file, indent=2)


def read_keys(path: Path) -> Keys:
    """The rings of a key file; raises `BadKeys` for one that is open to others or not whole."""
    try:
        if path.stat().st_mode & 0o007:
            raise BadKeys(f"{path} is open to every user of this machine; chmod 600 it")
        raw = json.loads(path.read_text())
        rings: dict[str, Ring] = {p: _read_ring(p, raw) for p in (*ASYMMETRIC, *SYMMETRIC)}
    except FileNotFoundError:
        raise BadKeys(
            f"{path} is not there; restore it from its backup; a new system makes one with `user-service keys init`"
        ) from None
    except OSError as error:
        raise BadKeys(f"{path} cannot be read ({error.strerror}); let the service's user read it") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadKeys(f"{path} is damaged ({type(error).__name__}); restore it from its backup") from None
    return Keys(rings, path)


def _read_ring(purpose: str, raw: dict[str, dict[str, Any]]) -> Ring:
    found = raw[purpose]
    keys = {kid: unb64(text) for kid, text in found["keys"].items()}
    current, successor = str(found["current"]), None
    if "next" in found:
        successor = Successor(str(found["next"]["kid"]), float(found["next"]["from"]))
    named = {current} | ({successor.kid} if successor else set())
    if not named <= keys.keys() or any(len(key) != 32 or "." in kid for kid, key in keys.items()):
        raise BadKeys(
            f"key ring {purpose}: a key has 32 bytes and no dot in its name; `current` and `next` name one of them"
        )
    return Ring(current, keys, successor)
