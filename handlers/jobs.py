"""The group `jobs`: clears away what is over, in small steps that hold no lock for long."""

import asyncio
import random

import structlog

from adapters.postgres import Database
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

PERIOD_S = 60.0
ROWS_MAX = 1000
_STEPS_MAX = 50
# What is over, and is of no more use: kept replies, spent sessions a month later, links, device tokens.
_CLEARING = {
    "idempotency_keys": "key_mac IN (SELECT key_mac FROM idempotency_keys WHERE expires_at < now() LIMIT $1)",
    "user_sessions": "id IN (SELECT id FROM user_sessions WHERE expires_at < now() - interval '30 days' LIMIT $1)",
    "links": "id IN (SELECT id FROM links WHERE expires_at < now() - interval '30 days' LIMIT $1)",
    "device_tokens": "hash IN (SELECT hash FROM device_tokens WHERE expires_at < now() LIMIT $1)",
}


async def clear_away(database: Database) -> None:
    """For ever, a bounded number of rows at a time; several processes may do so at once."""
    while True:
        await asyncio.sleep(PERIOD_S * random.uniform(0.5, 1.5))
        try:
            for table, condition in _CLEARING.items():
                await _clear(database, table, condition)
        except (Unavailable, Overloaded, Stale) as error:
            log.warning("clearing away waits", error=type(error).__name__)


async def _clear(database: Database, table: str, condition: str) -> None:
    for _ in range(_STEPS_MAX):
        async with database.connection() as connection:
            done = await connection.execute(f"DELETE FROM {table} WHERE {condition}", ROWS_MAX)
        if int(done.rpartition(" ")[2]) < ROWS_MAX:
            return
