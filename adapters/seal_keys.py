"""Signatures of the audit log's seals: Ed25519 under the key ring `seal`, whose older keys are kept for good."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.keys import Keys, b64, unb64

_PURPOSE = b"user-service audit seal v1:"


class SealKeys:
    """Signs hashes of seals, and tells which were signed here."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def sign(self, hashed: bytes) -> str:
        """A signature that names its key."""
        ring = self._keys.ring("seal")
        kid = ring.in_force
        return f"v1.{kid}.{b64(Ed25519PrivateKey.from_private_bytes(ring.keys[kid]).sign(_PURPOSE + hashed))}"

    def is_ours(self, hashed: bytes, signature: str) -> bool:
        """Whether a key of the ring has signed this hash."""
        version, _, rest = signature.partition(".")
        kid, _, body = rest.partition(".")
        seed = self._keys.ring("seal").keys.get(kid)
        if version != "v1" or seed is None:
            return False
        try:
            Ed25519PrivateKey.from_private_bytes(seed).public_key().verify(unb64(body), _PURPOSE + hashed)
        except (InvalidSignature, ValueError):
            return False
        return True
