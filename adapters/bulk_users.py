"""Many users at once: added by one statement with their events, read by the page for an export."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from adapters.addresses import email_key
from adapters.event_log import EventLog
from adapters.personal_data import PersonalData
from adapters.postgres import Connection
from contracts.transfer import ExportedUser
from domain.password import NO_PASSWORD
from domain.user import User

# Who is not added (a taken address, in the table or earlier in the batch) leaves no row and no event.
_ADD = """
WITH wanted AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::boolean[], $10::timestamptz[], $11::timestamptz[], $12::integer[], $13::text[], $14::text[])
        AS row (id, email, email_key, password_hash, first_name, last_name, role, status, email_verified, changed_at,
            created_at, version, wrapped, language)
), added AS (
    INSERT INTO users (id, email, email_key, password_hash, first_name, last_name, role, status, email_verified,
        last_password_change, version, created_at, updated_at)
    SELECT id, email, email_key, password_hash, first_name, last_name, role, status, email_verified, changed_at,
        version, created_at, $15
    FROM wanted
    WHERE NOT EXISTS (SELECT FROM email_reservations r WHERE r.email_key = wanted.email_key AND r.until > $15)
    ON CONFLICT (email_key) DO NOTHING RETURNING id
), profile AS (
    INSERT INTO user_profiles (user_id, language, created_at, updated_at)
    SELECT wanted.id, language, wanted.created_at, $15 FROM wanted JOIN added USING (id)
), head AS (
    INSERT INTO relay_heads (user_id) SELECT id FROM added
), key AS (
    INSERT INTO user_keys (user_id, wrapped) SELECT id, wrapped FROM wanted JOIN added USING (id)
), appended AS (
    INSERT INTO events (aggregate_id, occurred_at, metadata, id, version, type, data, personal)
    SELECT event.aggregate_id, $15, $16, event.id, event.version, event.type, event.data, event.personal
    FROM unnest($17::uuid[], $18::uuid[], $19::integer[], $20::text[], $21::jsonb[], $22::text[])
        AS event (aggregate_id, id, version, type, data, personal)
    JOIN added ON added.id = event.aggregate_id ORDER BY event.aggregate_id, event.version
    RETURNING position, aggregate_id, version
), waiting AS (
    INSERT INTO outbox (position, user_id, version) SELECT position, aggregate_id, version FROM appended
)
SELECT id FROM added"""


async def add_users(connection: Connection, personal: PersonalData, log: EventLog, users: Sequence[User]) -> set[UUID]:
    """Insert new users with their recorded events, in the caller's transaction; the ids of those whose address was
    free. All must have been changed last at the same time."""
    keys = [personal.new_key(user.id) for user in users]
    rows = [
        (
            user.id, user.email, email_key(user.email), user.password_hash, user.first_name, user.last_name, user.role,
            user.status, user.email_verified, user.last_password_change, user.created_at, user.version, key,
            user.profile.language,
        )
        for user, key in zip(users, keys, strict=True)
    ]  # fmt: skip
    events, metadata = [], None
    for user, key in zip(users, keys, strict=True):
        values = log.values_of(user.id, user.recorded, last_version=user.version, wrapped_key=key, at=user.updated_at)
        metadata = values[2]
        events += [(user.id, *event) for event in zip(*values[4:], strict=True)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    event_columns = [list(column) for column in zip(*events, strict=True)]
    found = await connection.fetch(_ADD, *columns, users[0].updated_at, metadata, *event_columns)
    return {row["id"] for row in found}


async def taken_among(connection: Connection, keys: Sequence[str]) -> set[str]:
    """Which of these addresses, by their keys, have an account or are kept for one."""
    rows = await connection.fetch(
        "SELECT email_key FROM users WHERE email_key = ANY($1) "
        "UNION SELECT email_key FROM email_reservations WHERE email_key = ANY($1) AND until > now()",
        keys,
    )
    return {row["email_key"] for row in rows}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an import of one file has come."""

    lines: int
    imported: int
    refused: int


async def take_file(connection: Connection, file_sha256: bytes) -> bool:
    """Keep other imports of this file out, as long as the connection is kept; False where one is at it."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", _number_of(file_sha256)))


async def give_back_file(connection: Connection, file_sha256: bytes) -> None:
    """Let others in again."""
    await connection.fetchval("SELECT pg_advisory_unlock($1)", _number_of(file_sha256))


def _number_of(file_sha256: bytes) -> int:
    return int.from_bytes(file_sha256[:8], signed=True)


async def progress_of(connection: Connection, file_sha256: bytes) -> Progress:
    """What an earlier run of the same file committed, or nothing yet."""
    row = await connection.fetchrow(
        "SELECT lines, imported, refused FROM user_imports WHERE file_sha256 = $1", file_sha256
    )
    return Progress(0, 0, 0) if row is None else Progress(**row)


async def keep_progress(connection: Connection, file_sha256: bytes, progress: Progress) -> None:
    """In the transaction of what was imported."""
    await connection.execute(
        "INSERT INTO user_imports (file_sha256, lines, imported, refused) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (file_sha256) DO UPDATE SET lines = $2, imported = $3, refused = $4, updated_at = now()",
        file_sha256, progress.lines, progress.imported, progress.refused,
    )  # fmt: skip


_PAGE = """
SELECT u.id, u.email, u.first_name, u.last_name, u.password_hash, u.role, u.status, u.status = 'suspended' AS suspended,
    u.email_verified, u.two_factor_enabled, p.language, u.created_at, u.last_password_change AS password_changed_at,
    u.last_login_at
FROM users u JOIN user_profiles p ON p.user_id = u.id
WHERE u.id > $1 AND u.status <> 'deleted' ORDER BY u.id LIMIT $2"""
_NONE = UUID(int=0)


async def export_page(
    connection: Connection, after: UUID | None, *, users_max: int, with_hashes: bool
) -> list[ExportedUser]:
    """Users behind one, by id; new ones get later ids, so a long export misses none that was there at its start."""
    rows = await connection.fetch(_PAGE, after or _NONE, users_max)
    return [ExportedUser.model_validate({**row, "password_hash": _shown(row, with_hashes)}) for row in rows]


def _shown(row: asyncpg.Record, with_hashes: bool) -> str | None:
    """A hash that an import takes again; none of a user who never had a password."""
    stored: str = row["password_hash"]
    return stored if with_hashes and stored != NO_PASSWORD else None


async def users_counted(connection: Connection) -> int:
    """About how many users there are, for a progress bar."""
    counted: int = await connection.fetchval(
        "SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE relname = 'users'"
    )
    return counted
