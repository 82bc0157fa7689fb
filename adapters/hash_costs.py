"""What checks of hashes from elsewhere take: measured once for each kind and cost, when the first of it comes in."""

import asyncio
import time
from collections.abc import Set
from datetime import timedelta

from adapters.foreign_hashes import check_of, form_of
from adapters.postgres import Connection

LOOK_AGAIN = timedelta(hours=1)
_NOTE = """
INSERT INTO foreign_hashes (form, took_ms) VALUES ($1, $2)
ON CONFLICT (form) DO UPDATE SET took_ms = greatest(foreign_hashes.took_ms, $2), looked_at = now()"""
# One form at a time, and each no more than once in an hour: it may take a walk through all users.
_FORGET = """
WITH due AS (
    UPDATE foreign_hashes SET looked_at = now() WHERE form = (
        SELECT form FROM foreign_hashes WHERE looked_at < now() - $1::interval LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING form)
DELETE FROM foreign_hashes f USING due WHERE f.form = due.form
    AND NOT EXISTS (SELECT FROM users u WHERE starts_with(u.password_hash, due.form))"""


async def note_costs(connection: Connection, encoded: Set[str]) -> None:
    """In the transaction that brings such hashes in: know what the dearest of each form takes."""
    by_form = {form: text for text in encoded if (form := form_of(text)) is not None}
    known = {row["form"] for row in await connection.fetch("SELECT form FROM foreign_hashes")}
    for form in sorted(by_form.keys() - known):
        await connection.execute(_NOTE, form, await asyncio.to_thread(_took_ms, by_form[form]))


async def dearest_ms(connection: Connection) -> float:
    """What the dearest check takes that a sign-in may still need; 0 where all hashes are our own."""
    found: float = await connection.fetchval("SELECT coalesce(max(took_ms), 0) FROM foreign_hashes")
    return found


async def forget_unused(connection: Connection) -> None:
    """Forget a form of which no user has a hash any more: their sign-ins have replaced them."""
    await connection.execute(_FORGET, LOOK_AGAIN)


def _took_ms(encoded: str) -> float:
    check = check_of(encoded)
    began = time.perf_counter()
    if check is not None:
        check(b"what this takes, whatever it is")
    return (time.perf_counter() - began) * 1000
