"""Addresses that nobody has: refusing one locks and writes a row, as refusing a user does."""

import hashlib
from datetime import datetime

from adapters.postgres import Connection

_SLOTS = 1024


async def refuse_stranger(connection: Connection, key: str, *, at: datetime) -> None:
    """Count a refused sign-in of an unknown address, in one of a fixed number of rows."""
    slot = int.from_bytes(hashlib.sha256(key.encode()).digest()[:2]) % _SLOTS
    await connection.fetchval("SELECT failures FROM strangers WHERE slot = $1 FOR UPDATE", slot)
    await connection.execute("UPDATE strangers SET failures = failures + 1, updated_at = $2 WHERE slot = $1", slot, at)
