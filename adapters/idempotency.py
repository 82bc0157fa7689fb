"""Idempotency keys: a claim before the work, the reply kept in the transaction of its effect.

The database never holds a caller's key, nor anything that could open a kept reply: the row's name is a MAC under a
server key, the reply is sealed under a key derived from that server key and the raw key together.
"""

import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from adapters.keys import Keys, decrypt, derive, encrypt, mac
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

    kid: str
    key_mac: bytes
    holder: UUID
    seal_key: bytes
    holds_secrets: bool

    async def keep(self, connection: Connection, *, success: bool, body: str) -> None:
        """Store the reply with its effect; raises `Stale` when the claim went to another meanwhile."""
        plain = json.dumps({"success": success, "body": body}).encode()
        sealed = f"v1.{self.kid}.{encrypt(self.seal_key, plain, _place(self.key_mac))}"
        kept = await connection.fetchval(
            "UPDATE idempotency_keys SET reply_sealed = $3, secret_until = clock_timestamp() + $4, "
            "expires_at = clock_timestamp() + $5 "
            "WHERE key_mac = $1 AND claimed_by = $2 AND reply_sealed IS NULL RETURNING true",
            self.key_mac, self.holder, sealed, SECRETS_KEPT_FOR if self.holds_secrets else None, KEPT_FOR,
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


@dataclass(frozen=True, slots=True)
class _Names:
    """What a caller's key is called at rest, under one key of the ring: nothing of it can be turned back."""

    kid: str
    key_mac: bytes
    body_mac: bytes
    seal_key: bytes


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
        current, *older = self._names(key, subject, user_id, canonical_body)
        claim = Claim(current.kid, current.key_mac, uuid4(), current.seal_key, holds_secrets)
        async with self._database.connection() as connection:
            async with _one_at_a_time(connection, [current, *older]):
                for names in older:  # the ring is being rotated, or was within the day
                    kept = await _kept(connection, names)
                    if kept is not None or await _is_in_work(connection, names):
                        return kept
                if await connection.fetchval(_CLAIM, current.key_mac, current.body_mac, user_id, claim.holder, lease):
                    return claim
            return await _kept(connection, current)

    async def find(self, key: str, *, subject: str, user_id: UUID | None, canonical_body: bytes) -> Kept | None:
        """The first reply, if there is one; raises `IdempotencyKeyReused`."""
        async with self._database.connection() as connection:
            for names in self._names(key, subject, user_id, canonical_body):
                kept = await _kept(connection, names)
                if kept is not None:
                    return kept
        return None

    def _names(self, key: str, subject: str, user_id: UUID | None, canonical_body: bytes) -> list[_Names]:
        """Under every key of the ring, the current one first."""
        ring = self._keys.ring("idempotency")
        caller = str(user_id or "anonymous").encode()
        in_force = ring.in_force
        kids = [in_force, *(kid for kid in ring.keys if kid != in_force)]
        return [
            _Names(
                kid,
                mac(ring.keys[kid], b"key", key.encode(), subject.encode(), caller),
                mac(ring.keys[kid], b"body", key.encode(), canonical_body),
                derive(ring.keys[kid] + key.encode(), "idempotency reply"),
            )
            for kid in kids
        ]

    async def give_up(self, claim: Claim) -> None:
        """Nothing came of the work: let the next one try at once."""
        async with self._database.connection() as connection:
            await connection.execute(
                "DELETE FROM idempotency_keys WHERE key_mac = $1 AND claimed_by = $2 AND reply_sealed IS NULL",
                claim.key_mac, claim.holder,
            )  # fmt: skip


@asynccontextmanager
async def _one_at_a_time(connection: Connection, all_names: Sequence[_Names]) -> AsyncIterator[None]:
    """While a ring has several keys, two processes may take different ones to be in force: who claims a key under one
    of its names waits for who claims it under another."""
    if len(all_names) == 1:
        yield
        return
    first = min(all_names, key=lambda names: names.kid)
    async with connection.transaction():
        place = int.from_bytes(first.key_mac[:8], signed=True)
        await connection.execute("SELECT pg_advisory_xact_lock($1)", place)
        yield


async def _is_in_work(connection: Connection, names: _Names) -> bool:
    """Is somebody at it under this name? A claim whose time is over is taken away, so that nothing comes of it late."""
    await connection.execute(
        "DELETE FROM idempotency_keys WHERE key_mac = $1 AND reply_sealed IS NULL "
        "AND claimed_until < clock_timestamp()",
        names.key_mac,
    )
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM idempotency_keys WHERE key_mac = $1 AND reply_sealed IS NULL)", names.key_mac
        )
    )


async def _kept(connection: Connection, names: _Names) -> Kept | None:
    row = await connection.fetchrow(
        "SELECT body_mac, reply_sealed, secret_until, secret_until < clock_timestamp() AS expired "
        "FROM idempotency_keys WHERE key_mac = $1",
        names.key_mac,
    )
    if row is None:
        return None
    if not hmac.compare_digest(row["body_mac"], names.body_mac):
        raise IdempotencyKeyReused
    if row["reply_sealed"] is None:
        return None
    sealed = str(row["reply_sealed"]).rpartition(".")[2]
    reply = json.loads(decrypt(names.seal_key, sealed, _place(names.key_mac)))
    return Kept(reply["success"], reply["body"], row["secret_until"] is not None, bool(row["expired"]))


def _place(key_mac: bytes) -> str:
    return f"idempotency_keys.reply:{key_mac.hex()}"
