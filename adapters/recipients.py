"""Who mail about a user goes to: the addresses that stand in the rows now."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from adapters.postgres import Connection

ADMINS_MAX = 100
"""How many admins one event is mailed to."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """An account as mail needs it; `first_name` is None until its owner has confirmed the address."""

    user_id: UUID
    address: str = field(repr=False)
    first_name: str | None = field(repr=False)
    language: str | None
    is_deleted: bool


_COLUMNS = """u.id, u.email, u.email_verified, u.first_name, u.status, p.language
FROM users u JOIN user_profiles p ON p.user_id = u.id"""


async def recipient_of(connection: Connection, user_id: UUID) -> Recipient | None:
    """The user's own mailbox; None for one who is gone."""
    row = await connection.fetchrow(f"SELECT {_COLUMNS} WHERE u.id = $1 AND u.erased_at IS NULL", user_id)
    return None if row is None else _recipient(row)


async def active_admins(connection: Connection, *, but: UUID) -> Sequence[Recipient]:
    """Every active admin other than one user, the oldest accounts first, at most `ADMINS_MAX`."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} WHERE u.role = 'admin' AND u.status = 'active' AND u.id <> $1 "
        "ORDER BY u.created_at, u.id LIMIT $2",
        but, ADMINS_MAX,
    )  # fmt: skip
    return [_recipient(row) for row in rows]


def _recipient(row: asyncpg.Record) -> Recipient:
    return Recipient(
        user_id=row["id"],
        address=row["email"],
        first_name=row["first_name"] if row["email_verified"] else None,
        language=row["language"],
        is_deleted=row["status"] == "deleted",
    )
