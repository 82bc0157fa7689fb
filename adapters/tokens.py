"""Access and refresh tokens: JWTs of two kinds, each with its own type, key ring and rules (RFC 8725, RFC 9068)."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from adapters.bounded import BoundedDict
from adapters.keys import Keys, b64, public_bytes
from domain.permissions import PERMISSIONS, Role
from domain.refusals import BadToken, ExpiredToken

AUDIENCE = "project5-api"
ISSUER = "user-service"
ACCESS_TYPE = "at+jwt"
REFRESH_TYPE = "rt+jwt"
_ACCESS_CLAIMS = ["exp", "iat", "nbf", "iss", "aud", "sub", "jti", "sid", "auth_time"]
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


class TokenMint:
    """Signs and verifies. Verified access tokens are remembered under the hash of the whole token, good ones only."""

    def __init__(self, keys: Keys) -> None:
        access = keys.ring("access")
        self._access_kid = access.current
        self._private = {kid: keys.signing_key("access", kid) for kid in access.keys}
        self._public: dict[str, Ed25519PublicKey] = {
            kid: private.public_key() for kid, private in self._private.items() if private is not None
        }
        self._refresh = keys.ring("refresh")
        self._verified: BoundedDict[bytes, AccessClaims] = BoundedDict(_CACHED_MAX)
        self.jwks = [
            {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": b64(public_bytes(private))}
            for kid, private in self._private.items()
            if private is not None
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
        private = self._private[self._access_kid]
        if private is None:  # the ring was read with this key as its current one
            raise BadToken()
        return jwt.encode(claims, private, "EdDSA", headers={"typ": ACCESS_TYPE, "kid": self._access_kid})

    def refresh(self, *, user_id: UUID, session_id: UUID, at: datetime, lifetime: timedelta) -> str:
        claims = {
            "sub": str(user_id),
            "sessionId": str(session_id),
            "tokenFamily": str(session_id),
            **_common(at, lifetime, jti=new_secret()),
        }
        headers = {"typ": REFRESH_TYPE, "kid": self._refresh.current}
        return jwt.encode(claims, self._refresh.key, "HS256", headers=headers)

    def read_access(self, token: str, *, at: datetime) -> AccessClaims:
        """Raise `BadToken` or `ExpiredToken` for all that is not a live access token of ours."""
        if not token.isascii():
            raise BadToken()  # a header may carry bytes that are no text, which cannot even be hashed
        key = hash_of(token)
        known = self._verified.get(key)
        if known is None:
            known = self._verify_access(token)
            self._verified[key] = known
        if at >= known.expires_at:
            raise ExpiredToken()
        return known

    def _verify_access(self, token: str) -> AccessClaims:
        public = self._public.get(_kid_of(token, ACCESS_TYPE, "EdDSA"))
        if public is None:
            raise BadToken()
        claims = _decode(token, public, "EdDSA", _ACCESS_CLAIMS)
        try:
            return AccessClaims(
                user_id=UUID(str(claims["sub"])),
                session_id=UUID(str(claims["sid"])),
                auth_time=datetime.fromtimestamp(_whole(claims["auth_time"]), UTC),
                expires_at=datetime.fromtimestamp(_whole(claims["exp"]), UTC),
                raw=claims,
            )
        except (ValueError, OverflowError, OSError) as error:
            raise BadToken() from error

    def read_refresh(self, token: str) -> RefreshClaims:
        """The token's rows decide whether it is live; here only whether we made it, and whether its time is past."""
        secret = self._refresh.keys.get(_kid_of(token, REFRESH_TYPE, "HS256"))
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
