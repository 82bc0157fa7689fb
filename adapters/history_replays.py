"""Replays of a stretch of history to one group: what of it the group has not dealt with becomes the items of a job."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import uuid_utils.compat as uuid_utils
from pydantic import JsonValue

from adapters.personal_data import NOBODY
from adapters.postgres import Connection

EVENTS_MAX = 50_000
"""So many may wait for a group in one job."""
DISORDER = timedelta(minutes=10)
"""Positions follow times but for the length of a transaction, and what clocks are apart."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Events from a position or time on, and before another."""

    group: str
    first: int
    end: int
    since: datetime | None
    until: datetime | None


async def position_of(connection: Connection, event_id: UUID) -> int | None:
    """Where an event stands in the table."""
    found: int | None = await connection.fetchval("SELECT position FROM events WHERE id = $1", event_id)
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a stretch, and what has become of it in the group."""

    matched: int
    already_handled: int
    discarded: int
    oldest: datetime | None
    newest: datetime | None

    @property
    def to_deliver(self) -> int:
        return self.matched - self.already_handled - self.discarded


# Without what no relay has announced yet: the group will have it anyway. Of an erased user there is nothing to deliver.
_STRETCH = """
letters AS (
    SELECT DISTINCT ON (event_id) event_id, id, state FROM dead_letters
    WHERE group_name = $1 AND reason <> 'unauthentic' ORDER BY event_id, n DESC
), stretch AS (
    SELECT e.position, e.id, e.aggregate_id, e.version, e.type, e.occurred_at, l.id AS letter_id, l.state,
        i.event_id IS NOT NULL OR k.user_id IS NULL AS handled
    FROM events e
    LEFT JOIN inbox i ON i.group_name = $1 AND i.event_id = e.id
    LEFT JOIN user_keys k ON k.user_id = e.aggregate_id
    LEFT JOIN outbox o ON o.position = e.position
    LEFT JOIN letters l ON l.event_id = e.id
    WHERE e.position >= $2 AND e.position < $3 AND o.position IS NULL
        AND coalesce(e.occurred_at >= $4, true) AND coalesce(e.occurred_at < $5, true)
)"""
_COUNT = f"""
WITH {_STRETCH}
SELECT count(*) AS matched, count(*) FILTER (WHERE handled) AS already_handled,
    count(*) FILTER (WHERE NOT handled AND state = 'discarded') AS discarded,
    min(occurred_at) FILTER (WHERE NOT handled AND state IS DISTINCT FROM 'discarded') AS oldest,
    max(occurred_at) FILTER (WHERE NOT handled AND state IS DISTINCT FROM 'discarded') AS newest
FROM stretch"""
_SAMPLE = f"""
WITH {_STRETCH}
SELECT position, id, aggregate_id AS user_id, version, type, occurred_at FROM stretch
WHERE NOT handled AND state IS DISTINCT FROM 'discarded' ORDER BY position LIMIT $6"""
_ADD_ITEMS = f"""
WITH {_STRETCH}
INSERT INTO replay_items (job_id, place, letter_id, group_name, event_id, user_id)
SELECT $6, row_number() OVER (ORDER BY position), CASE WHEN state = 'dead' THEN letter_id END, $1, id, aggregate_id
FROM stretch WHERE NOT handled AND state IS DISTINCT FROM 'discarded' ORDER BY position LIMIT $7"""
# What was handled before counts, and does not make the job's first steps less careful.
_ADD_JOB = """
INSERT INTO replay_jobs (id, created_by, asked, rate, careful, already_handled, discarded, settled_before, leased_until)
VALUES ($1, $2, $3, $4, $5, $6::integer, $7::integer, $6::integer + $7::integer, now())"""


async def count_stretch(connection: Connection, stretch: Stretch) -> Found:
    """How much of a stretch there is, and how much of it the group has dealt with."""
    [row] = await connection.fetch(_COUNT, *_values(stretch))
    return Found(**row)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that would be delivered."""

    position: int
    id: UUID
    user_id: UUID
    version: int
    type: str
    occurred_at: datetime


async def sample_stretch(connection: Connection, stretch: Stretch, *, events_max: int) -> list[Waiting]:
    """The first of what would be delivered."""
    return [Waiting(**row) for row in await connection.fetch(_SAMPLE, *_values(stretch), events_max)]


async def begin_history_job(
    connection: Connection, stretch: Stretch, found: Found, *, asked: dict[str, JsonValue], rate: float, careful: bool
) -> UUID:
    """In the caller's transaction: fix the events of a new job, which nobody who signs in has begun."""
    job_id = uuid_utils.uuid7()
    await connection.execute(_ADD_JOB, job_id, NOBODY, asked, rate, careful, found.already_handled, found.discarded)
    done: str = await connection.execute(_ADD_ITEMS, *_values(stretch), job_id, EVENTS_MAX)
    items = int(done.rpartition(" ")[2])
    await connection.execute(
        "UPDATE replay_jobs SET total = already_handled + discarded + $2 WHERE id = $1", job_id, items
    )
    return job_id


def _values(stretch: Stretch) -> Sequence[object]:
    return stretch.group, stretch.first, stretch.end, stretch.since, stretch.until


_FROM = "SELECT position, occurred_at FROM events WHERE position >= $1 ORDER BY position LIMIT 1"


async def position_at(connection: Connection, at: datetime) -> int:
    """A position with nothing before it that happened at that time or later, but for `DISORDER`; by halves, since times
    have no index of their own."""
    low, high = 0, 1 + int(await connection.fetchval("SELECT coalesce(max(position), 0) FROM events"))
    while low < high:
        middle = (low + high) // 2
        row = await connection.fetchrow(_FROM, middle)
        if row is not None and row["occurred_at"] < at:
            low = row["position"] + 1
        else:
            high = middle
    return low
