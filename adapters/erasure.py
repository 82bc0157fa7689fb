"""What of a deleted user is destroyed in PostgreSQL, and what is left of them: an id, a version, sealed history.

Erasing begins with one transaction, which destroys the user's key and leaves `UserErased` behind. Everything after it
is swept away in steps that may be repeated, and is swept once more a while later: a process that had read something
before the key was gone may have written it after.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.event_log import APPEND, Trail
from adapters.postgres import Connection
from contracts.events import Metadata

LEASE = timedelta(seconds=30)
"""So long a user is left to the process that is at it; after a crash another goes on."""
SETTLED_AFTER = timedelta(minutes=10)
"""Longer than any request, delivery or relay pass that had read something of the user before."""
HANDLED_WITHIN = timedelta(hours=1)
"""So long what happened last waits for mail and audit, where little grace is set; one without them waits no longer."""
EMPTIED = (
    "user_profiles", "password_history", "user_sessions", "device_tokens", "links", "second_factors",
    "login_challenges", "idempotency_keys", "email_reservations",
)  # fmt: skip
"""Tables whose rows of the user go, with the refresh tokens and link tokens that hang on them."""

_CLAIM = """
UPDATE users SET erasing_until = $1 + $4 WHERE id = (
    SELECT id FROM users
    WHERE status = 'deleted' AND NOT is_swept AND deleted_at <= $2 AND coalesce(erasing_until <= $1, true)
        AND (swept_at IS NULL OR erased_at <= $3) AND (erased_at IS NOT NULL OR NOT EXISTS (
            SELECT FROM events e CROSS JOIN unnest($5::text[]) AS g (name)
            WHERE e.aggregate_id = users.id AND e.occurred_at > $6
                AND NOT EXISTS (SELECT FROM inbox i WHERE i.group_name = g.name AND i.event_id = e.id)
                AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.group_name = g.name AND d.event_id = e.id)))
    ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id"""
_LOCK_USER = "SELECT version FROM users WHERE id = $1 AND status = 'deleted' AND erased_at IS NULL FOR UPDATE"
# Whoever relays this user's events holds this row: what is relayed after us is read after us, without its key.
_LOCK_RELAY = "SELECT FROM relay_heads WHERE user_id = $1 FOR UPDATE"
_ERASE = f"""
WITH changed AS (
    UPDATE users SET email = 'erased', email_key = 'erased:' || id, password_hash = '', first_name = '', last_name = '',
        email_verified = false, two_factor_enabled = false, failed_login_attempts = 0, lockout_until = NULL,
        last_login_at = NULL, version = version + 1, updated_at = $2, erased_at = $2
    WHERE id = $1 AND erased_at IS NULL RETURNING id
), key AS (
    DELETE FROM user_keys WHERE user_id = $1
), {APPEND}"""


async def claim_erasure(
    connection: Connection, groups: Sequence[str], *, deleted_before: datetime, at: datetime
) -> UUID | None:
    """A user whose time has come, left to this process for a while; None where there is none.

    What happened to the user last has been dealt with by these groups: their mail is out, and on record.
    """
    found: UUID | None = await connection.fetchval(
        _CLAIM, at, deleted_before, at - SETTLED_AFTER, LEASE, groups, at - HANDLED_WITHIN
    )
    return found


async def erase_user(connection: Connection, user_id: UUID, trail: Trail, *, at: datetime) -> bool:
    """In the caller's transaction: destroy the key and all that the row says, and record `UserErased`, the last event.

    False when that has been done before.
    """
    version = await connection.fetchval(_LOCK_USER, user_id)
    if version is None:
        return False
    await connection.execute(_LOCK_RELAY, user_id)
    metadata = Metadata(request_id=trail.request_id).model_dump(mode="json", by_alias=True)
    await connection.fetchval(
        _ERASE, user_id, at, metadata, trail.traceparent, [uuid_utils.uuid7()], [version + 1], ["UserErased"],
        [{"userId": str(user_id)}], [None],
    )  # fmt: skip
    await sweep_rows(connection, user_id)
    return True


_SWEEP_ATTEMPTS = """
DELETE FROM delivery_attempts WHERE event_id IN (SELECT id FROM events WHERE aggregate_id = $1)"""
_SWEEP_LETTERS = """
UPDATE dead_letters SET body = '', headers = '{}', message = '', attempts = '[]', state_why = NULL
WHERE user_id = $1 AND body <> ''"""


async def sweep_rows(connection: Connection, user_id: UUID) -> None:
    """Delete what other tables hold of the user; of letters their content: that they died stays on record."""
    for table in EMPTIED:
        await connection.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
    await connection.execute(_SWEEP_ATTEMPTS, user_id)
    await connection.execute(_SWEEP_LETTERS, user_id)


async def note_swept(connection: Connection, user_id: UUID, *, begun_at: datetime, at: datetime) -> None:
    """A whole sweep is done; it was the last if it began when everything had settled."""
    await connection.execute(
        "UPDATE users SET swept_at = $2, erasing_until = NULL, is_swept = $3 >= erased_at + $4 WHERE id = $1",
        user_id, at, begun_at, SETTLED_AFTER,
    )  # fmt: skip


async def give_back_erasure(connection: Connection, user_id: UUID) -> None:
    """There is more to sweep: whoever comes next goes on at once."""
    await connection.execute("UPDATE users SET erasing_until = NULL WHERE id = $1", user_id)


async def version_of(connection: Connection, user_id: UUID) -> int:
    """The version at which a user has ended."""
    return int(await connection.fetchval("SELECT version FROM users WHERE id = $1", user_id))


_FREE = """
UPDATE users SET email_key = 'freed:' || id WHERE id IN (
    SELECT id FROM users WHERE status = 'deleted' AND strpos(email_key, '@') > 0 AND deleted_at <= $1
    ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED)"""


async def free_addresses(connection: Connection, *, deleted_before: datetime, users_max: int) -> None:
    """Let others take the addresses of accounts that were deleted so long ago; mail about the deletion still finds
    them, until they are erased."""
    await connection.execute(_FREE, deleted_before, users_max)


async def free_address(connection: Connection, user_id: UUID) -> None:
    """Let others take the address of a deleted account at once: nobody had shown that it was theirs."""
    await connection.execute(
        "UPDATE users SET email_key = 'freed:' || id WHERE id = $1 AND status = 'deleted'", user_id
    )


# Who came in from elsewhere is not pending, and who has signed in without a verified address is not either.
_PENDING = """
SELECT u.id FROM users u JOIN events e ON e.aggregate_id = u.id AND e.version = 1
WHERE u.status = 'active' AND NOT u.email_verified AND u.created_at <= $1 AND u.last_login_at IS NULL
    AND e.type = 'UserRegistered' AND e.data->>'origin' IN ('registration', 'admin')
ORDER BY u.created_at LIMIT $2"""


async def pending_since(connection: Connection, before: datetime, *, users_max: int) -> list[UUID]:
    """Accounts that were opened before this and whose address nobody has ever verified."""
    return [row["id"] for row in await connection.fetch(_PENDING, before, users_max)]
