"""Addresses that nobody has: what asks for one locks and writes a row, as it does with a user's."""

import hashlib
from datetime import datetime

from adapters.postgres import Connection

_SLOTS = 1024


async def count_stranger(connection: Connection, key: str, *, at: datetime) -> None:
    """Count a request that named an unknown address, in one of a fixed number of rows."""
    slot = int.from_bytes(hashlib.sha256(key.encode()).digest()[:2]) % _SLOTS
    await connection.fetchval("SELECT requests FROM strangers WHERE slot = $1 FOR UPDATE", slot)
    await connection.execute("UPDATE strangers SET requests = requests + 1, updated_at = $2 WHERE slot = $1", slot, at)
