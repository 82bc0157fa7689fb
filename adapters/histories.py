"""Users' events folded as they stand in the table, beside the rows that they must agree with; read by the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from adapters.avatars import avatar_json, avatar_of
from adapters.event_log import opened_data
from adapters.keys import CannotOpen
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from domain.history import History, Past

USERS_MAX = 200
EVENTS_AT_ONCE = 2000
_BEFORE_ALL = UUID(int=0)

_ROWS = """
SELECT u.id, u.role, u.status, u.email_verified, u.two_factor_enabled, u.password_reset_required, u.revision,
    u.version, u.erased_at IS NOT NULL AS erased, u.email, u.first_name, u.last_name, p.display_name, p.bio,
    p.website_url AS website, p.location, p.timezone, p.language, p.theme, p.notifications_email AS by_email,
    p.notifications_push AS by_push, p.notifications_sms AS by_sms, p.social_links, p.avatar
FROM users u LEFT JOIN user_profiles p ON p.user_id = u.id
WHERE u.id > $1 AND ($2 = 0 OR EXISTS (SELECT FROM events e WHERE e.aggregate_id = u.id AND e.position >= $2))
ORDER BY u.id LIMIT $3"""
_EVENTS = """
SELECT e.id, e.aggregate_id, e.version, e.type, e.data, e.personal, k.wrapped
FROM events e LEFT JOIN user_keys k ON k.user_id = e.aggregate_id
WHERE e.aggregate_id = ANY($1) ORDER BY e.aggregate_id, e.version"""


@dataclass(frozen=True, slots=True)
class Compared:
    """A user, how many events were read, what they are wrong in, and what the row says otherwise."""

    user_id: UUID
    events: int
    faults: Sequence[str]
    differs: Sequence[str]


async def compare_page(
    database: Database, personal: PersonalData, after: UUID | None, *, from_position: int
) -> list[Compared]:
    """The next users that have events from a position on: rows and all their events, as they stood at one moment."""
    async with database.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(_ROWS, after or _BEFORE_ALL, from_position, USERS_MAX)
        histories = {row["id"]: History() for row in rows}
        async for event in connection.cursor(_EVENTS, list(histories), prefetch=EVENTS_AT_ONCE):
            _take(histories[event["aggregate_id"]], event, personal)
    return [
        Compared(row["id"], history.version, history.faults, history.against(_facts(row)))
        for row, history in zip(rows, histories.values(), strict=True)
    ]


def _take(history: History, row: asyncpg.Record, personal: PersonalData) -> None:
    try:
        data = opened_data(row, personal)
    except (CannotOpen, ValueError) as error:
        history.faults.append(f"version {row['version']} cannot be read ({type(error).__name__})")
        data = row["data"]
    history.take(Past(row["version"], row["type"], data))


def _facts(row: asyncpg.Record) -> Mapping[str, object]:
    facts = dict(row)
    facts["notifications"] = {"email": facts["by_email"], "push": facts["by_push"], "sms": facts["by_sms"]}
    facts["avatar"] = _shown(facts["avatar"])
    return facts


def _shown(stored: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """An avatar by the names of the wire, as events have it."""
    avatar = avatar_json(avatar_of(stored))
    return avatar and {
        "id": str(avatar["id"]), "contentType": avatar["content_type"], "width": avatar["width"],
        "height": avatar["height"], "sizes": avatar["sizes"],
    }  # fmt: skip


_NOBODYS = """
SELECT DISTINCT e.aggregate_id FROM events e
WHERE e.position >= $1 AND NOT EXISTS (SELECT FROM users u WHERE u.id = e.aggregate_id) LIMIT $2"""


async def users_without_row(connection: Connection, *, from_position: int, users_max: int) -> list[UUID]:
    """Who has events and no row."""
    return [row["aggregate_id"] for row in await connection.fetch(_NOBODYS, from_position, users_max)]


@dataclass(frozen=True, slots=True)
class Placed:
    """An event, and where its user's event before it stands in the table."""

    position: int
    user_id: UUID
    version: int
    type: str
    before: int | None


_PLACED = """
SELECT e.id, e.position, e.aggregate_id AS user_id, e.version, e.type, b.position AS before
FROM events e LEFT JOIN events b ON b.aggregate_id = e.aggregate_id AND b.version = e.version - 1"""


async def placed_by_id(connection: Connection, event_ids: Sequence[UUID]) -> dict[UUID, Placed]:
    """Those among these ids that are events of ours."""
    return {row["id"]: _placed(row) for row in await connection.fetch(f"{_PLACED} WHERE e.id = ANY($1)", event_ids)}


async def placed_at(connection: Connection, positions: Sequence[int]) -> list[Placed]:
    """The events at these positions."""
    return [_placed(row) for row in await connection.fetch(f"{_PLACED} WHERE e.position = ANY($1)", positions)]


def _placed(row: asyncpg.Record) -> Placed:
    return Placed(row["position"], row["user_id"], row["version"], row["type"], row["before"])


# Of erased users only the last event stays on the stream.
_ON_STREAM = """
SELECT e.position FROM events e
WHERE {} AND e.occurred_at >= $2 AND NOT EXISTS (SELECT FROM outbox o WHERE o.position = e.position)
    AND (e.type = 'UserErased' OR EXISTS (SELECT FROM user_keys k WHERE k.user_id = e.aggregate_id))
ORDER BY e.position LIMIT $3"""
_NEXT = _ON_STREAM.format("e.position > $1 AND e.position <= $4")
_THESE = _ON_STREAM.format("e.position = ANY($1)")


async def announced_page(
    connection: Connection, after: int, *, up_to: int, since: datetime, events_max: int
) -> list[int]:
    """The next positions of events that must stand on the stream: announced, not too old, not erased."""
    rows = await connection.fetch(_NEXT, after, since, events_max, up_to)
    return [row["position"] for row in rows]


async def announced_among(connection: Connection, positions: Sequence[int], *, since: datetime) -> list[int]:
    """Those of these positions that must stand there still."""
    return [row["position"] for row in await connection.fetch(_THESE, positions, since, len(positions))]


async def time_of(connection: Connection, position: int) -> datetime | None:
    """When the first event from a position on happened."""
    found: datetime | None = await connection.fetchval(
        "SELECT occurred_at FROM events WHERE position >= $1 ORDER BY position LIMIT 1", position
    )
    return found


async def events_counted(connection: Connection) -> tuple[int, int]:
    """About how many users and events there are, for a progress bar."""
    row = await connection.fetchrow(
        "SELECT (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'users'::regclass) AS users, "
        "(SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = 'events'::regclass) AS events"
    )
    return (row["users"], row["events"]) if row else (0, 0)
