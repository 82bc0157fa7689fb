"""The end of a user's data."""

from uuid import UUID

from adapters.postgres import Connection


async def free_address(connection: Connection, user_id: UUID) -> None:
    """Let others take the address of a deleted account at once: nobody had shown that it was theirs."""
    await connection.execute(
        "UPDATE users SET email_key = 'freed:' || id WHERE id = $1 AND status = 'deleted'", user_id
    )
