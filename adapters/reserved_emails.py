"""Addresses that an account has left, and that are kept for it while the change can be undone."""

from datetime import datetime
from uuid import UUID

from adapters.addresses import email_key
from adapters.postgres import Connection


async def reserve_email(connection: Connection, user_id: UUID, address: str, *, until: datetime) -> None:
    """In the transaction in which the account leaves the address: nobody else may take it before this time."""
    await connection.execute(
        "INSERT INTO email_reservations (email_key, user_id, until) VALUES ($1, $2, $3) "
        "ON CONFLICT (email_key) DO UPDATE SET user_id = excluded.user_id, until = excluded.until",
        email_key(address), user_id, until,
    )  # fmt: skip


_IS_ANOTHERS = """
SELECT EXISTS (SELECT FROM users WHERE email_key = $1 AND id <> $2)
    OR EXISTS (SELECT FROM email_reservations WHERE email_key = $1 AND user_id <> $2 AND until > $3)"""


async def is_anothers(connection: Connection, address: str, user_id: UUID, *, at: datetime) -> bool:
    """Does an address belong to another account, or is it kept for one?"""
    return bool(await connection.fetchval(_IS_ANOTHERS, email_key(address), user_id, at))
