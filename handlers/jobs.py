"""The group `jobs`: clears away what is over, in small steps that hold no lock for long."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from adapters.hash_costs import forget_unused
from adapters.postgres import Connection, Database
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

PERIOD_S = 60.0
ROWS_MAX = 1000
_STEPS_MAX = 50
# What is over, and of no more use: kept replies, sessions a month later (ended ones expire too) and before them their
# tokens, of which each may have many, links, devices, successors past their grace, challenges an hour later; what
# operators did about letters 90 days later, and the letters that are closed since.
_CLEARING = """
DELETE FROM idempotency_keys WHERE key_mac IN (SELECT key_mac FROM idempotency_keys WHERE expires_at < now() LIMIT $1);
DELETE FROM refresh_tokens WHERE hash IN
    (SELECT t.hash FROM refresh_tokens t JOIN user_sessions s ON s.id = t.session_id
     WHERE s.expires_at < now() - interval '30 days' LIMIT $1);
DELETE FROM user_sessions WHERE id IN
    (SELECT s.id FROM user_sessions s WHERE s.expires_at < now() - interval '30 days'
     AND NOT EXISTS (SELECT FROM refresh_tokens t WHERE t.session_id = s.id) LIMIT $1);
DELETE FROM links WHERE id IN (SELECT id FROM links WHERE expires_at < now() - interval '30 days' LIMIT $1);
DELETE FROM device_tokens WHERE hash IN (SELECT hash FROM device_tokens WHERE expires_at < now() LIMIT $1);
DELETE FROM email_reservations WHERE email_key IN
    (SELECT email_key FROM email_reservations WHERE until < now() LIMIT $1);
UPDATE refresh_tokens SET successor_sealed = NULL WHERE hash IN
    (SELECT hash FROM refresh_tokens
     WHERE successor_sealed IS NOT NULL AND used_at < now() - interval '1 minute' LIMIT $1);
DELETE FROM login_challenges WHERE hash IN
    (SELECT hash FROM login_challenges WHERE expires_at < now() - interval '1 hour' LIMIT $1);
DELETE FROM replay_items WHERE (job_id, place) IN
    (SELECT i.job_id, i.place FROM replay_jobs j JOIN replay_items i ON i.job_id = j.id
     WHERE j.ended_at < now() - interval '90 days' LIMIT $1);
DELETE FROM replay_jobs WHERE id IN
    (SELECT j.id FROM replay_jobs j WHERE j.ended_at < now() - interval '90 days'
     AND NOT EXISTS (SELECT FROM replay_items i WHERE i.job_id = j.id) LIMIT $1);
DELETE FROM dead_letters WHERE id IN
    (SELECT d.id FROM dead_letters d WHERE d.state IN ('replayed', 'failed_again', 'discarded')
     AND d.state_at < now() - interval '90 days'
     AND NOT EXISTS (SELECT FROM replay_items i WHERE i.letter_id = d.id AND i.outcome IS NULL)
     LIMIT $1 FOR UPDATE SKIP LOCKED);
DELETE FROM delivery_attempts WHERE (group_name, event_id, attempt) IN
    (SELECT group_name, event_id, attempt FROM delivery_attempts WHERE at < now() - interval '90 days' LIMIT $1)"""


async def clear_away(database: Database) -> None:
    """For ever, a bounded number of rows at a time; several processes may do so at once."""
    while True:
        await asyncio.sleep(PERIOD_S * random.uniform(0.5, 1.5))
        try:
            await clear_once(database)
        except (Unavailable, Overloaded, Stale) as error:
            log.warning("clearing away waits", error=type(error).__name__)


async def clear_once(database: Database) -> None:
    """One round: of each kind as many rows as a bounded number of steps allow."""
    for statement in _CLEARING.split(";"):
        await _clear(database, statement)
    async with database.connection() as connection:
        await forget_unused(connection)


async def keep_current(database: Database, what: str, seal_anew: Callable[[Connection, int], Awaitable[int]]) -> None:
    """For ever: after a rotation what was sealed under an older server key comes under the one in force, so that the
    old one can go. `seal_anew` is told how many rows to take at most, and says how many they were."""
    while True:
        try:
            async with database.connection() as connection:
                sealed = await seal_anew(connection, ROWS_MAX)
        except (Unavailable, Overloaded, Stale) as error:
            log.warning("sealing anew waits", what=what, error=type(error).__name__)
            sealed = 0
        if sealed:
            log.info("sealed anew", what=what, count=sealed)
        await asyncio.sleep(1 if sealed == ROWS_MAX else PERIOD_S * random.uniform(0.5, 1.5))


async def _clear(database: Database, statement: str) -> None:
    for _ in range(_STEPS_MAX):
        async with database.connection() as connection:
            done = await connection.execute(statement, ROWS_MAX)
        if int(done.rpartition(" ")[2]) < ROWS_MAX:
            return
