"""Idempotency keys: a claim before the work, the reply kept in the transaction of its effect.

The database never holds a caller's key, nor anything that could open a kept reply: the row's name is a MAC under a
server key, the reply is sealed under a key derived from that server key and the raw key together.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from adapters.keys import CannotOpen, Keys, decrypt, derive, encrypt
from adapters.postgres import Connection, Database
from domain.refusals import IdempotencyKeyReused, Stale

KEPT_FOR = timedelta(hours=24)
SECRETS_KEPT_FOR = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Kept:
    """The first reply, as it was: `body` is the JSON of `data` or of `error`."""

    success: bool
    body: str
    holds_secrets: bool
    secrets_expired: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to do the work of a key, until `lease` is over."""

    key_mac: bytes
    holder: UUID
    seal_key: bytes
    holds_secrets: bool

    async def keep(self, connection: Connection, *, success: bool, body: str, at: datetime) -> None:
        """Store the reply with its effect; raises `Stale` when the claim went to another meanwhile."""
        sealed = encrypt(
            self.seal_key, json.dumps({"success": success, "body": body}).encode(), "idempotency_keys.reply"
        )
        kept = await connection.fetchval(
            "UPDATE idempotency_keys SET reply_sealed = $3, secret_until = $4, expires_at = $5 "
            "WHERE key_mac = $1 AND claimed_by = $2 AND reply_sealed IS NULL RETURNING true",
            self.key_mac, self.holder, sealed, at + SECRETS_KEPT_FOR if self.holds_secrets else None, at + KEPT_FOR,
        )  # fmt: skip
        if not kept:
            raise Stale


_CLAIM = """
INSERT INTO idempotency_keys AS k (key_mac, body_mac, user_id, claimed_by, claimed_until, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5, now() + interval '1 hour')
ON CONFLICT (key_mac) DO UPDATE SET body_mac = excluded.body_mac, claimed_by = excluded.claimed_by,
    claimed_until = excluded.claimed_until, reply_sealed = NULL, secret_until = NULL, expires_at = excluded.expires_at
WHERE (k.reply_sealed IS NULL AND k.claimed_until < clock_timestamp()) OR k.expires_at < clock_timestamp()
RETURNING true"""


class IdempotencyKeys:
    """Claims and kept replies in PostgreSQL; they outlive crashes and a flushed Redis."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self._database = database
        self._keys = keys

    async def claim(
        self,
        key: str,
        *,
        subject: str,
        user_id: UUID | None,
        canonical_body: bytes,
        lease: timedelta,
        holds_secrets: bool,
    ) -> Claim | Kept | None:
        """The right to work, the first reply, or None while another works; raises `IdempotencyKeyReused`."""
        caller = str(user_id or "anonymous").encode()
        key_mac = self._keys.mac("idempotency", b"key", key.encode(), subject.encode(), caller)
        body_mac = self._keys.mac("idempotency", b"body", key.encode(), canonical_body)
        seal_key = derive(self._keys.ring("idempotency").key + key.encode(), "idempotency reply")
        claim = Claim(key_mac, uuid4(), seal_key, holds_secrets)
        async with self._database.connection() as connection:
            if await connection.fetchval(_CLAIM, key_mac, body_mac, user_id, claim.holder, lease):
                return claim
            row = await connection.fetchrow(
                "SELECT body_mac, reply_sealed, secret_until, secret_until < now() AS expired "
                "FROM idempotency_keys WHERE key_mac = $1",
                key_mac,
            )
        if row is None:
            return None
        if row["body_mac"] != body_mac:
            raise IdempotencyKeyReused
        if row["reply_sealed"] is None:
            return None
        return _opened(row["reply_sealed"], seal_key, row["secret_until"] is not None, bool(row["expired"]))

    async def give_up(self, claim: Claim) -> None:
        """Nothing came of the work: let the next one try at once."""
        async with self._database.connection() as connection:
            await connection.execute(
                "DELETE FROM idempotency_keys WHERE key_mac = $1 AND claimed_by = $2 AND reply_sealed IS NULL",
                claim.key_mac, claim.holder,
            )  # fmt: skip


def _opened(sealed: str, seal_key: bytes, holds_secrets: bool, expired: bool) -> Kept:
    try:
        reply = json.loads(decrypt(seal_key, sealed, "idempotency_keys.reply"))
    except CannotOpen as error:  # the server key was rotated within the day
        raise IdempotencyKeyReused from error
    return Kept(reply["success"], reply["body"], holds_secrets, expired)
