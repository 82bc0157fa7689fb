"""What each group has done with each event: done once, tried so often, or dead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
import uuid_utils.compat as uuid_utils

from adapters.postgres import Connection
from adapters.streams import EVENTS_AGE
from domain.refusals import Stale

MESSAGE_CHARS_MAX = 500
TRACE_CHARS_MAX = 4000


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery that failed for good: exact bytes and headers, and every attempt's error."""

    id: UUID
    group: str
    event_id: UUID
    n: int
    user_id: UUID | None
    event_type: str
    reason: str
    error: str
    message: str
    subject: str
    body: bytes
    headers: dict[str, str]
    deliveries: int
    stream_sequence: int
    created_at: datetime


async def done_among(connection: Connection, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
    """Which of these events has the group dealt with before?"""
    rows = await connection.fetch(
        "SELECT event_id FROM inbox WHERE group_name = $1 AND event_id = ANY($2)", group, event_ids
    )
    return {row["event_id"] for row in rows}


_DEALT_WITH = """
SELECT event_id, true AS done FROM inbox WHERE group_name = $1 AND event_id = ANY($2)
UNION ALL
SELECT event_id, false FROM dead_letters
WHERE group_name = $1 AND event_id = ANY($2) AND reason <> 'unauthentic' AND body <> ''"""


async def dealt_with_among(
    connection: Connection, group: str, event_ids: Sequence[UUID]
) -> tuple[set[UUID], set[UUID]]:
    """Which of these events has the group done, and for which does a letter stand? One that a forged message left
    stands for nothing, and one that was emptied with its erased user neither."""
    rows = await connection.fetch(_DEALT_WITH, group, event_ids)
    return {row["event_id"] for row in rows if row["done"]}, {row["event_id"] for row in rows if not row["done"]}


async def groups_done(connection: Connection, groups: Sequence[str], event_id: UUID) -> set[str]:
    """Which of these groups, or parts of a group, have dealt with an event?"""
    rows = await connection.fetch(
        "SELECT group_name FROM inbox WHERE group_name = ANY($1) AND event_id = $2", groups, event_id
    )
    return {row["group_name"] for row in rows}


async def mark_done(connection: Connection, group: str, outcomes: Mapping[UUID, str]) -> None:
    """Record what has become of events; what was recorded before stays as it is."""
    await connection.execute(
        "INSERT INTO inbox (group_name, event_id, outcome) SELECT $1, * FROM unnest($2::uuid[], $3::text[]) "
        "ON CONFLICT DO NOTHING",
        group, list(outcomes), list(outcomes.values()),
    )  # fmt: skip


async def record_attempt(
    connection: Connection, durable: str, event_id: UUID, attempt: int, error: str, message: str, trace: str
) -> None:
    """Remember why an attempt of a durable failed, events and replays apart; cut to what a person reads."""
    await connection.execute(
        "INSERT INTO delivery_attempts (group_name, event_id, attempt, error, message, trace) "
        "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (group_name, event_id, attempt) DO UPDATE "
        "SET error = excluded.error, message = excluded.message, trace = excluded.trace, at = excluded.at",
        durable, event_id, attempt, error, _text(message)[:MESSAGE_CHARS_MAX], _text(trace)[-TRACE_CHARS_MAX:],
    )  # fmt: skip


async def forget_attempt(connection: Connection, durable: str, event_id: UUID, attempt: int, error: str) -> None:
    """Take back that an attempt failed of this; where it failed of something else meanwhile, that stays."""
    await connection.execute(
        "DELETE FROM delivery_attempts WHERE group_name = $1 AND event_id = $2 AND attempt = $3 AND error = $4",
        durable, event_id, attempt, error,
    )  # fmt: skip


async def error_of_attempt(connection: Connection, durable: str, event_id: UUID, attempt: int) -> str | None:
    """What an attempt failed of, or None where nothing is known of it."""
    found: str | None = await connection.fetchval(
        "SELECT error FROM delivery_attempts WHERE group_name = $1 AND event_id = $2 AND attempt = $3",
        durable, event_id, attempt,
    )  # fmt: skip
    return found


UNANSWERED = """
NOT EXISTS (SELECT FROM inbox i WHERE i.group_name = {group} AND i.event_id = e.id)
    AND NOT EXISTS (SELECT FROM dead_letters l
        WHERE l.group_name = {group} AND l.event_id = e.id AND l.reason <> 'unauthentic')
    AND e.occurred_at > now() - {age}::interval"""
"""Of an event `e`: a group has neither done it nor has it become a letter, and it is young enough to be on the stream
still."""

# What somebody else wrote onto the bus is no event of the user's, and nothing waits behind its letter.
_BEHIND_A_LETTER = """
SELECT EXISTS (
    SELECT FROM dead_letters d
    WHERE d.user_id = $2 AND d.group_name = $1 AND d.version < $3 AND d.state IN ('dead', 'held')
        AND d.reason <> 'unauthentic')"""
_BEHIND_AN_EVENT = f"""
SELECT EXISTS (
    SELECT FROM events e
    WHERE e.aggregate_id = $2 AND e.version = $3 - 1 AND {UNANSWERED.format(group="$1", age="$4")})"""


async def is_behind_a_letter(connection: Connection, group: str, user_id: UUID, version: int) -> bool:
    """Does a letter of an earlier event of this user wait?"""
    return bool(await connection.fetchval(_BEHIND_A_LETTER, group, user_id, version))


async def is_behind_an_event(connection: Connection, group: str, user_id: UUID, version: int) -> bool:
    """Is the user's event right before this version not dealt with, and may be still?"""
    return bool(await connection.fetchval(_BEHIND_AN_EVENT, group, user_id, version, EVENTS_AGE))


_ADD_LETTER = """
WITH before AS (
    SELECT coalesce(max(n), 0) AS n, max(created_at) AS at FROM dead_letters WHERE group_name = $2 AND event_id = $3
), tried AS (
    SELECT a.* FROM delivery_attempts a, before
    WHERE a.group_name = $15 AND a.event_id = $3 AND coalesce(a.at > before.at, true)
)
INSERT INTO dead_letters (id, group_name, event_id, n, user_id, event_type, reason, error, message, subject, body,
    headers, attempts, deliveries, stream, stream_sequence, version, state)
SELECT $1, $2, $3, 1 + (SELECT n FROM before),
    $4, $5, $6, $7, $8, $9, $10, $11, coalesce((
        SELECT jsonb_agg(jsonb_build_object('attempt', attempt, 'error', error, 'message', message, 'trace', trace,
            'at', at) ORDER BY attempt) FROM tried), '[]'),
    $12, $13, $14, (SELECT version FROM events WHERE id = $3 AND aggregate_id = $4), $16
ON CONFLICT (group_name, event_id, stream, stream_sequence) DO NOTHING"""
_IS_ERASED = "SELECT EXISTS (SELECT FROM users WHERE id = $1 AND erased_at IS NOT NULL)"


async def add_letter(
    connection: Connection, *, group: str, event_id: UUID, user_id: UUID | None, event_type: str, reason: str,
    error: str, message: str, subject: str, body: bytes, headers: dict[str, str], deliveries: int, stream: str,
    stream_sequence: int, durable: str, state: str = "dead",
) -> None:  # fmt: skip
    """Write the letter of a delivery, once: the same delivery handed out again adds none. One that is `held` waits
    behind an earlier event of its user.

    Raises `Stale` when another letter of the event was numbered at the same moment.
    """
    kept = {_text(name): _text(value) for name, value in headers.items()}
    if user_id is not None and await connection.fetchval(_IS_ERASED, user_id):
        body, kept, message = b"", {}, ""  # what the message still says is not to be kept any more
    try:
        await connection.execute(
            _ADD_LETTER, uuid_utils.uuid7(), group, event_id, user_id, event_type, reason, error,
            _text(message)[:MESSAGE_CHARS_MAX], _text(subject), body, kept, deliveries, stream, stream_sequence,
            durable, state,
        )  # fmt: skip
    except asyncpg.UniqueViolationError as race:
        raise Stale from race


def _text(value: str) -> str:
    """PostgreSQL keeps no NUL in a text, and whoever writes to the bus may have put one there."""
    return value.replace("\x00", "\ufffd")


_UNANNOUNCED = """
SELECT id, group_name, event_id, n, user_id, event_type, reason, error, message, subject, body, headers, deliveries,
    stream_sequence, created_at
FROM dead_letters WHERE announced_at IS NULL AND state <> 'held' ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED"""


async def unannounced_letters(connection: Connection, letters_max: int) -> list[Letter]:
    """Letters that no listener has been told of, locked against other announcers."""
    return [_letter(row) for row in await connection.fetch(_UNANNOUNCED, letters_max)]


async def mark_announced(connection: Connection, letter_ids: list[UUID]) -> None:
    """Listeners have been told of these letters."""
    await connection.execute("UPDATE dead_letters SET announced_at = now() WHERE id = ANY($1)", letter_ids)


def _letter(row: asyncpg.Record) -> Letter:
    return Letter(
        id=row["id"],
        group=row["group_name"],
        event_id=row["event_id"],
        n=row["n"],
        user_id=row["user_id"],
        event_type=row["event_type"],
        reason=row["reason"],
        error=row["error"],
        message=row["message"],
        subject=row["subject"],
        body=row["body"],
        headers=row["headers"],
        deliveries=row["deliveries"],
        stream_sequence=row["stream_sequence"],
        created_at=row["created_at"],
    )


@dataclass(frozen=True, slots=True)
class AnnouncedLetter:
    """A letter that listeners were told of, and where."""

    id: UUID
    subject: str


_ANNOUNCED = """
SELECT id, group_name, event_type, user_id FROM dead_letters
WHERE id > $1 AND announced_at IS NOT NULL AND created_at >= $2 AND body <> '' ORDER BY id LIMIT $3"""


async def announced_letters(
    connection: Connection, after: UUID | None, *, since: datetime, letters_max: int
) -> list[AnnouncedLetter]:
    """Letters behind one, by id, that listeners were told of; without those of erased users."""
    rows = await connection.fetch(_ANNOUNCED, after or UUID(int=0), since, letters_max)
    return [
        AnnouncedLetter(row["id"], announcement_subject(row["group_name"], row["event_type"], row["user_id"]))
        for row in rows
    ]


def announcement_subject(group: str, event_type: str, user_id: UUID | None) -> str:
    """Where a letter is announced."""
    return f"users.dead-letters.{group}.{event_type}.{user_id or 'unknown'}"


async def announce_again(connection: Connection, letter_ids: Sequence[UUID]) -> None:
    """Have listeners told of letters once more."""
    await connection.execute("UPDATE dead_letters SET announced_at = NULL WHERE id = ANY($1)", letter_ids)
