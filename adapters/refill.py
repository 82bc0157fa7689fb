"""What a stream has lost goes through the outbox once more, so that relays announce it as they announce anything.

Under the lock of a user's `relay_heads` row, which every relay holds while it publishes for that user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from adapters.postgres import Connection

RETENTION = timedelta(days=90)
"""How long streams keep what is announced: what is older is not lost, but over."""
_BEFORE_ALL = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Tail:
    """The last event of a user that the stream holds, 0 for none, and where it stands."""

    user_id: UUID
    version: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Announced:
    """A user's last event that was announced, as the table has it."""

    user_id: UUID
    version: int
    event_id: UUID
    sequence: int
    position: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some users in the order of their ids: those whose last event is to be looked for, and how far the page goes."""

    heads: list[Announced]
    last: UUID | None
    """None where there were no users any more."""


_USERS = "SELECT user_id FROM relay_heads WHERE user_id > $1 ORDER BY user_id LIMIT $2"
_HEADS = """
SELECT h.user_id, h.version, e.id AS event_id, h.stream_sequence AS sequence, e.position
FROM relay_heads h JOIN events e ON e.aggregate_id = h.user_id AND e.version = h.version
WHERE h.user_id > $1 AND h.user_id <= $2 AND e.position >= $3 AND e.occurred_at >= $4
ORDER BY h.user_id"""


async def heads_page(
    connection: Connection, after: UUID | None, *, from_position: int, since: datetime, users_max: int, lock: bool
) -> Page:
    """The next users whose last announced event is not before a position and a time; their heads stay locked."""
    users = await connection.fetch(_USERS, after or _BEFORE_ALL, users_max)
    if not users:
        return Page([], None)
    last = users[-1]["user_id"]
    statement = f"{_HEADS} FOR UPDATE OF h" if lock else _HEADS
    rows = await connection.fetch(statement, after or _BEFORE_ALL, last, from_position, since)
    return Page([Announced(**row) for row in rows], last)


async def versions_of(connection: Connection, event_ids: Sequence[UUID]) -> dict[UUID, tuple[UUID, int]]:
    """User and version of those among these ids that are events of ours."""
    rows = await connection.fetch("SELECT id, aggregate_id, version FROM events WHERE id = ANY($1)", event_ids)
    return {row["id"]: (row["aggregate_id"], row["version"]) for row in rows}


# Of an erased user nothing is missing as long as something waits: the stream's copies are being deleted just then.
_MISSING = """
tails AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::bigint[]) AS row (user_id, version, sequence)
), missing AS (
    SELECT t.user_id, h.version AS announced, min(e.version) AS first
    FROM tails t JOIN relay_heads h USING (user_id)
    JOIN events e ON e.aggregate_id = t.user_id AND e.version > t.version AND e.version <= h.version
    WHERE e.position >= $4 AND e.occurred_at >= $5 AND (
        EXISTS (SELECT FROM user_keys k WHERE k.user_id = t.user_id)
        OR NOT EXISTS (SELECT FROM outbox o WHERE o.user_id = t.user_id))
    GROUP BY t.user_id, h.version
)"""
_PUT_BACK = f"""
WITH {_MISSING}, put_back AS (
    INSERT INTO outbox (position, user_id, version) SELECT e.position, e.aggregate_id, e.version
    FROM missing m JOIN events e ON e.aggregate_id = m.user_id AND e.version BETWEEN m.first AND m.announced
    ON CONFLICT DO NOTHING RETURNING position
), moved AS (
    UPDATE relay_heads h
    SET stream_sequence = t.sequence, version = greatest(coalesce(m.first - 1, h.version), t.version)
    FROM tails t LEFT JOIN missing m USING (user_id) WHERE h.user_id = t.user_id
)
SELECT count(*) FROM put_back"""
_COUNT = f"WITH {_MISSING} SELECT coalesce(sum(announced - first + 1), 0) FROM missing"


async def put_back(connection: Connection, tails: Sequence[Tail], *, from_position: int, since: datetime) -> int:
    """Have what these users' tails lack announced again, all of it and in order; how many events that is.

    In the transaction that holds the users' heads: these say from here what the stream really holds.
    """
    found: int = await connection.fetchval(_PUT_BACK, *_columns(tails), from_position, since)
    return found


async def count_missing(connection: Connection, tails: Sequence[Tail], *, from_position: int, since: datetime) -> int:
    """How many events `put_back` would take."""
    return int(await connection.fetchval(_COUNT, *_columns(tails), from_position, since))


def _columns(tails: Sequence[Tail]) -> tuple[list[UUID], list[int], list[int]]:
    return [tail.user_id for tail in tails], [tail.version for tail in tails], [tail.sequence for tail in tails]


async def outbox_is_full(connection: Connection, events_max: int) -> bool:
    """Do so many events wait for a relay? Nobody's new events shall wait behind a whole history."""
    waiting = await connection.fetchval("SELECT count(*) FROM (SELECT FROM outbox LIMIT $1) AS found", events_max)
    return bool(waiting >= events_max)


async def waiting_between(connection: Connection, since: datetime, until: datetime) -> int:
    """How many events wait that have come to wait between two times."""
    return int(
        await connection.fetchval("SELECT count(*) FROM outbox WHERE created_at BETWEEN $1 AND $2", since, until)
    )


async def last_position(connection: Connection) -> int:
    """Where the newest event stands."""
    return int(await connection.fetchval("SELECT coalesce(max(position), 0) FROM events"))


# What has waited for a minute (too large, or unreadable) holds up its own user alone, and not the look at all others.
_ANNOUNCED_TO = """
SELECT coalesce(
    (SELECT min(position) - 1 FROM outbox WHERE created_at > now() - interval '1 minute'),
    (SELECT max(position) FROM events), 0)"""
_SAMPLE = """
SELECT h.user_id, h.version, e.id AS event_id, h.stream_sequence AS sequence, e.position
FROM (SELECT DISTINCT aggregate_id FROM events WHERE position = ANY($1)) AS u
JOIN relay_heads h ON h.user_id = u.aggregate_id
JOIN events e ON e.aggregate_id = h.user_id AND e.version = h.version
WHERE e.occurred_at >= $2 AND EXISTS (SELECT FROM user_keys k WHERE k.user_id = h.user_id)
    AND NOT EXISTS (SELECT FROM outbox o WHERE o.user_id = h.user_id)"""


async def announced_since(
    connection: Connection, position: int, *, since: datetime, users_max: int
) -> tuple[list[Announced], int]:
    """The last events of some of the users of whom something was announced behind a position, spread evenly over what
    came since; and up to which position that was."""
    end = int(await connection.fetchval(_ANNOUNCED_TO))
    count = min(end - position, users_max)
    if count <= 0:
        return [], position
    wanted = {position + (end - position) * number // count for number in range(1, count + 1)}
    return await announced_at(connection, sorted(wanted), since=since), end


async def announced_at(connection: Connection, positions: Sequence[int], *, since: datetime) -> list[Announced]:
    """The last events of the users whose events stand at these positions, without those who are erased or wait."""
    return [Announced(**row) for row in await connection.fetch(_SAMPLE, positions, since)]
