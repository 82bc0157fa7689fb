"""Tokens as an attacker makes them, each good but for one thing; none may be taken anywhere."""

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.keys import Keys, b64, public_bytes
from adapters.tokens import TokenMint

USER, SESSION = UUID(int=5), UUID(int=6)
LIFETIME = timedelta(minutes=15)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Forge:
    """Makes tokens that differ from a good one in one thing."""

    def __init__(self, keys: Keys) -> None:
        ring = keys.ring("access")
        self.keys = keys
        self.kid = ring.in_force
        self.private = Ed25519PrivateKey.from_private_bytes(ring.key)
        self.mint = TokenMint(keys)
        moment = int(now().timestamp())
        self.claims: dict[str, object] = {
            "sub": str(USER), "email": "ada@example.org", "role": "user", "permissions": [], "sid": str(SESSION),
            "auth_time": moment, "amr": ["pwd"], "jti": "1", "iat": moment, "nbf": moment, "exp": moment + 900,
            "aud": "project5-api", "iss": "user-service",
        }  # fmt: skip
        self.header: dict[str, object] = {"typ": "at+jwt", "alg": "EdDSA", "kid": self.kid}

    def sign(self, claims: object = None, header: dict[str, object] | None = None, private: object = None) -> str:
        """By hand: the library would refuse to make most of these."""
        head = b64(json.dumps(self.header | (header or {})).encode())
        body = b64(json.dumps(self.claims if claims is None else claims).encode())
        key = private if isinstance(private, Ed25519PrivateKey | Ed448PrivateKey) else self.private
        return f"{head}.{body}.{b64(key.sign(f'{head}.{body}'.encode()))}"

    def but(self, **claims: object) -> str:
        return self.sign(self.claims | claims)

    def without(self, claim: str) -> str:
        return self.sign({name: value for name, value in self.claims.items() if name != claim})

    def hs256(self, key: bytes) -> str:
        head = b64(json.dumps(self.header | {"alg": "HS256"}).encode())
        body = b64(json.dumps(self.claims).encode())
        return f"{head}.{body}.{b64(hmac.new(key, f'{head}.{body}'.encode(), hashlib.sha256).digest())}"

    def none(self, alg: str) -> str:
        return self.sign(header={"alg": alg}).rpartition(".")[0] + "."

    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def altered(self) -> str:
        head, _, signature = self.sign().split(".")
        return f"{head}.{b64(json.dumps(self.claims | {'role': 'admin'}).encode())}.{signature}"

    def own_jwk(self) -> str:
        stranger = Ed25519PrivateKey.generate()
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(public_bytes(stranger))}
        return self.sign(header={"jwk": jwk}, private=stranger)

    def refresh(self) -> str:
        return self.mint.refresh(user_id=USER, session_id=SESSION, at=now(), lifetime=LIFETIME)


def _future() -> int:
    return int(now().timestamp()) + 600


STRANGER = Ed25519PrivateKey.generate()
HOSTILE: dict[str, Callable[[Forge], str]] = {
    "empty": lambda _: "",
    "a dot": lambda _: ".",
    "three empty parts": lambda _: "..",
    "words": lambda _: "not a token at all",
    "letters that are no bytes": lambda forge: forge.sign() + "\udc80",
    "other letters": lambda forge: "é" + forge.sign(),
    "two parts": lambda forge: forge.sign().rpartition(".")[0],
    "four parts": lambda forge: forge.sign() + ".AAAA",
    "oversize": lambda forge: forge.but(padding="x" * 4096),
    "oversize junk": lambda _: "A" * 1_000_000,
    "alg none": lambda forge: forge.none("none"),
    "alg None": lambda forge: forge.none("None"),
    "alg empty": lambda forge: forge.none(""),
    "alg list": lambda forge: forge.sign(header={"alg": ["EdDSA"]}),
    "HS256 with the public key": lambda forge: forge.hs256(public_bytes(forge.private)),
    "HS256 with the public key as PEM": lambda forge: forge.hs256(forge.pem()),
    "HS256 with the PEM's line ends changed": lambda forge: forge.hs256(forge.pem().replace(b"\n", b"\r\n")),
    "HS256 with nothing": lambda forge: forge.hs256(b""),
    "no typ": lambda forge: forge.sign(header={"typ": None}),
    "typ JWT": lambda forge: forge.sign(header={"typ": "JWT"}),
    "typ of a refresh token": lambda forge: forge.sign(header={"typ": "rt+jwt"}),
    "a refresh token": Forge.refresh,
    "no kid": lambda forge: forge.sign(header={"kid": None}),
    "kid unknown": lambda forge: forge.sign(header={"kid": "other"}),
    "kid empty": lambda forge: forge.sign(header={"kid": ""}),
    "kid a path": lambda forge: forge.sign(header={"kid": "../../../dev/null"}),
    "kid a list": lambda forge: forge.sign(header={"kid": [forge.kid]}),
    "crit": lambda forge: forge.sign(header={"crit": ["exp"]}),
    "crit empty": lambda forge: forge.sign(header={"crit": []}),
    "jku with a stranger's key": lambda forge: forge.sign(header={"jku": "https://evil.example/k"}, private=STRANGER),
    "jwk with a stranger's key": Forge.own_jwk,
    "a stranger's signature": lambda forge: forge.sign(private=STRANGER),
    "Ed448": lambda forge: forge.sign(private=Ed448PrivateKey.generate()),
    "payload altered": Forge.altered,
    "signature cut": lambda forge: forge.sign()[:-8],
    "signature empty": lambda forge: forge.sign().rpartition(".")[0] + ".",
    "aud a list": lambda forge: forge.but(aud=["project5-api"]),
    "aud another": lambda forge: forge.but(aud="project6-api"),
    "iss another": lambda forge: forge.but(iss="user-service2"),
    "iss a part": lambda forge: forge.but(iss="user"),
    "iss a list": lambda forge: forge.but(iss=["user-service"]),
    "nbf ahead": lambda forge: forge.but(nbf=_future()),
    "iat ahead": lambda forge: forge.but(iat=_future()),
    "exp words": lambda forge: forge.but(exp="tomorrow"),
    "exp endless": lambda forge: forge.but(exp=10**30),
    "auth_time words": lambda forge: forge.but(auth_time="now"),
    "auth_time endless": lambda forge: forge.but(auth_time=10**30),
    "sub no id": lambda forge: forge.but(sub="admin"),
    "sub a number": lambda forge: forge.but(sub=5),
    "sid no id": lambda forge: forge.but(sid="' OR 1=1"),
    "claims a list": lambda forge: forge.sign([forge.claims]),
    "claims words": lambda forge: forge.sign("claims"),
    "nested": lambda forge: jwt.encode({"x": forge.sign()}, forge.private, "EdDSA", headers=forge.header),
    **{
        f"no {claim}": lambda forge, claim=claim: forge.without(claim)  # type: ignore[misc]
        for claim in (
            "exp",
            "iat",
            "nbf",
            "iss",
            "aud",
            "sub",
            "jti",
            "sid",
            "auth_time",
            "amr",
            "email",
            "role",
            "permissions",
        )
    },
}
