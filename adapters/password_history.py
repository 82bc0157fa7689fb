"""The passwords that a user had before, as hashes."""

from datetime import datetime
from uuid import UUID

from adapters.postgres import Connection

_FORGET = """
DELETE FROM password_history WHERE user_id = $1 AND replaced_at IN (
    SELECT replaced_at FROM password_history WHERE user_id = $1 ORDER BY replaced_at DESC OFFSET $2)"""


async def passwords_before(connection: Connection, user_id: UUID, *, passwords_max: int) -> list[str]:
    """The hashes of the newest few, newest first."""
    rows = await connection.fetch(
        "SELECT password_hash FROM password_history WHERE user_id = $1 ORDER BY replaced_at DESC LIMIT $2",
        user_id, passwords_max,
    )  # fmt: skip
    return [row["password_hash"] for row in rows]


async def remember_password(
    connection: Connection, user_id: UUID, password_hash: str, *, at: datetime, passwords_max: int
) -> None:
    """Keep what is replaced now, under the user's lock; older ones than are looked at are forgotten."""
    await connection.execute(
        "INSERT INTO password_history (user_id, replaced_at, password_hash) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        user_id, at, password_hash,
    )  # fmt: skip
    await connection.execute(_FORGET, user_id, passwords_max)
