"""The last admin: whoever ceases to be one leaves another behind, also when all of them go at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from adapters.postgres import Connection
from domain.refusals import StateConflict

_LOCK = 5_040_001
"""Of this database; nothing else of ours takes it."""
# An account whose address nobody has shown to be theirs (an invitation that is still open) may never let anybody in.
_ANOTHER = """
SELECT EXISTS (
    SELECT FROM users WHERE role = 'admin' AND status = 'active' AND email_verified AND id <> $1)"""


async def require_another_admin(connection: Connection, user_id: UUID) -> None:
    """Raise `StateConflict` when nobody but this user is an active admin. Ask it in the transaction that takes an
    active admin's role or status away, after every row lock of it and before the change.

    One such transaction at a time, to its end: the next sees what this one did. Rows are locked first by everybody,
    so whoever holds this lock waits for no row, and nobody waits in a circle.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
    if not await connection.fetchval(_ANOTHER, user_id):  # a statement of its own: it sees what was committed meanwhile
        raise StateConflict


async def has_admin(connection: Connection) -> bool:
    """Is there anybody who could sign in as an admin?"""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM users WHERE role = 'admin' AND status = 'active' AND email_verified)"
        )
    )


@asynccontextmanager
async def alone_at_the_first(connection: Connection) -> AsyncIterator[None]:
    """Of several who would be the first admin one is looked at after the other, whichever process asks."""
    async with connection.transaction():  # which gives the lock back however the block ends
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('first admin'))")
        yield
