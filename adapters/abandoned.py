"""Accounts that somebody opened and nobody verified in time."""

from datetime import datetime
from uuid import UUID

from adapters.postgres import Connection

# Who was invited or came in by an import is somebody that an operator knows of, however anybody may have had them
# mailed; who signs in unverified is there all the same.
_ABANDONED = """
SELECT EXISTS (
    SELECT FROM users u WHERE u.id = $1 AND u.status = 'active' AND NOT u.email_verified AND u.last_login_at IS NULL
        AND EXISTS (
            SELECT FROM events e WHERE e.aggregate_id = u.id AND e.version = 1 AND e.type = 'UserRegistered'
                AND e.data ->> 'origin' = 'registration')
        AND NOT EXISTS (
            SELECT FROM links l WHERE l.user_id = u.id AND l.purpose IN ('verification', 'invitation', 'reset')
                AND l.used_at IS NULL AND l.expires_at > $2))"""


async def is_abandoned(connection: Connection, user_id: UUID, *, at: datetime) -> bool:
    """May a new registration take this account's place: was it never verified, and are its links past?"""
    return bool(await connection.fetchval(_ABANDONED, user_id, at))
