"""Access and refresh tokens: JWTs of two kinds, each with its own type, key ring and rules (RFC 8725, RFC 9068)."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adapters.bounded import BoundedDict
from adapters.keys import Keys, b64, decrypt, derive, encrypt, public_bytes
from domain.permissions import PERMISSIONS, Role
from domain.refusals import BadToken, ExpiredToken

Algorithm = Literal["EdDSA", "HS256"]
AUDIENCE = "project5-api"
ISSUER = "user-service"
ACCESS_TYPE = "at+jwt"
REFRESH_TYPE = "rt+jwt"
_ACCESS_CLAIMS = [
    "exp", "iat", "nbf", "iss", "aud", "sub", "jti", "sid", "auth_time", "amr", "email", "role", "permissions",
]  # fmt: skip
_REFRESH_CLAIMS = ["exp", "iat", "nbf", "iss", "aud", "sub", "jti", "sessionId", "tokenFamily"]
_TOKEN_CHARS_MAX = 4096
_CACHED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a good access token says; who its bearer is now, the rows say."""

    user_id: UUID
    session_id: UUID
    auth_time: datetime
    expires_at: datetime
    has_second_factor: bool
    raw: dict[str, object]


@dataclass(frozen=True, slots=True)
class RefreshClaims:
    user_id: UUID
    session_id: UUID
    hash: bytes


def hash_of(token: str) -> bytes:
    """How a token of 256 random bits is kept at rest."""
    return hashlib.sha256(token.encode()).digest()


def new_secret() -> str:
    """256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class _Signing:
    """The two sides of a key; with HS256 they are the same secret."""

    sign: Ed25519PrivateKey | bytes
    verify: Ed25519PublicKey | bytes


def _signing(seed: bytes, algorithm: Algorithm) -> _Signing:
    """A seed serves either algorithm by a key of its own: what is published of one says nothing of the other."""
    if algorithm == "HS256":
        secret = derive(seed, "access.hs256")
        return _Signing(secret, secret)
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return _Signing(private, private.public_key())


class TokenMint:
    """Signs and verifies. Verified access tokens are remembered under the hash of the whole token, good ones only."""

    def __init__(self, keys: Keys, algorithm: Algorithm = "EdDSA") -> None:
        self._keys = keys
        self._algorithm = algorithm
        self._generation = -1
        self._signing: dict[str, _Signing] = {}
        self._verified: BoundedDict[bytes, AccessClaims] = BoundedDict(_CACHED_MAX)
        self._know_the_keys()

    def _know_the_keys(self) -> None:
        """Once for each state of the key file: a token of a key that is gone must not be remembered as good."""
        if self._generation == self._keys.generation:
            return
        self._generation = self._keys.generation
        seeds = self._keys.ring("access").keys
        self._signing = {kid: _signing(seed, self._algorithm) for kid, seed in seeds.items()}
        self._verified.clear()

    @property
    def jwks(self) -> list[dict[str, str]]:
        """The public keys, those that are yet to sign among them; none for HS256, whose key is a secret."""
        self._know_the_keys()
        return [
            {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": b64(public_bytes(key.sign))}
            for kid, key in self._signing.items()
            if isinstance(key.sign, Ed25519PrivateKey)
        ]

    def access(
        self, *, user_id: UUID, email: str, role: Role, session_id: UUID, auth_time: datetime, amr: tuple[str, ...],
        at: datetime, lifetime: timedelta,
    ) -> str:  # fmt: skip
        claims = {
            "sub": str(user_id),
            "email": email,
            "role": role,
            "permissions": sorted(PERMISSIONS[role]),
            "sid": str(session_id),
            "auth_time": int(auth_time.timestamp()),
            "amr": list(amr),
            **_common(at, lifetime, jti=str(uuid4())),
        }
        self._know_the_keys()
        kid = self._keys.ring("access").in_force
        return jwt.encode(claims, self._signing[kid].sign, self._algorithm, headers={"typ": ACCESS_TYPE, "kid": kid})

    def refresh(self, *, user_id: UUID, session_id: UUID, at: datetime, lifetime: timedelta) -> str:
        claims = {
            "sub": str(user_id),
            "sessionId": str(session_id),
            "tokenFamily": str(session_id),
            **_common(at, lifetime, jti=new_secret()),
        }
        ring = self._keys.ring("refresh")
        kid = ring.in_force
        return jwt.encode(claims, ring.keys[kid], "HS256", headers={"typ": REFRESH_TYPE, "kid": kid})

    def seal(self, token: str, *, place: str) -> str:
        """Encrypt a refresh token, under a key for this place alone."""
        ring = self._keys.ring("refresh")
        kid = ring.in_force
        return f"{kid}.{encrypt(derive(ring.keys[kid], place), token.encode(), place)}"

    def open(self, sealed: str, *, place: str) -> str:
        """A refresh token that was sealed for this place; raises `BadToken` where its key is gone."""
        kid, _, body = sealed.partition(".")
        key = self._keys.ring("refresh").keys.get(kid)
        if key is None:
            raise BadToken()
        return decrypt(derive(key, place), body, place).decode()

    def read_access(self, token: str, *, at: datetime) -> AccessClaims:
        """Raise `BadToken` or `ExpiredToken` for all that is not a live access token of ours."""
        if not token.isascii():
            raise BadToken()  # a header may carry bytes that are no text, which cannot even be hashed
        self._know_the_keys()
        key = hash_of(token)
        known = self._verified.get(key)
        if known is None:
            known = self._verify_access(token)
            self._verified[key] = known
        if at >= known.expires_at:
            raise ExpiredToken()
        return known

    def _verify_access(self, token: str) -> AccessClaims:
        key = self._signing.get(_kid_of(token, ACCESS_TYPE, self._algorithm))
        if key is None:
            raise BadToken()
        claims = _decode(token, key.verify, self._algorithm, _ACCESS_CLAIMS)
        amr = claims.get("amr")
        try:
            return AccessClaims(
                user_id=UUID(str(claims["sub"])),
                session_id=UUID(str(claims["sid"])),
                auth_time=datetime.fromtimestamp(_whole(claims["auth_time"]), UTC),
                expires_at=datetime.fromtimestamp(_whole(claims["exp"]), UTC),
                has_second_factor=isinstance(amr, list) and "otp" in amr,
                raw=claims,
            )
        except (ValueError, OverflowError, OSError) as error:
            raise BadToken() from error

    def read_refresh(self, token: str) -> RefreshClaims:
        """The token's rows decide whether it is live; here only whether we made it, and whether its time is past."""
        secret = self._keys.ring("refresh").keys.get(_kid_of(token, REFRESH_TYPE, "HS256"))
        if secret is None:
            raise BadToken()
        claims = _decode(token, secret, "HS256", _REFRESH_CLAIMS)
        try:
            return RefreshClaims(UUID(str(claims["sub"])), UUID(str(claims["sessionId"])), hash_of(token))
        except ValueError as error:
            raise BadToken() from error


def _common(at: datetime, lifetime: timedelta, *, jti: str) -> dict[str, object]:
    now = int(at.timestamp())
    return {
        "jti": jti,
        "iat": now,
        "nbf": now,
        "exp": now + int(lifetime.total_seconds()),
        "aud": AUDIENCE,
        "iss": ISSUER,
    }


def _kid_of(token: str, kind: str, algorithm: str) -> str:
    """Read the header before choosing a key: PyJWT checks no `typ`, and a key serves one algorithm alone."""
    if len(token) > _TOKEN_CHARS_MAX:
        raise BadToken()
    try:
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise BadToken() from error
    kid = header.get("kid")
    if header.get("typ") != kind or header.get("alg") != algorithm or not isinstance(kid, str) or "crit" in header:
        raise BadToken()
    return kid


def _decode(token: str, key: Ed25519PublicKey | bytes, algorithm: str, required: list[str]) -> dict[str, object]:
    try:
        claims: dict[str, object] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": required, "strict_aud": True},
        )
    except jwt.ExpiredSignatureError as error:
        raise ExpiredToken() from error
    except (jwt.PyJWTError, ValueError) as error:
        raise BadToken() from error
    return claims


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("not a number")
    return value
