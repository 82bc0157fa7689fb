"""Replays: jobs over letters that were fixed when they began, their turns, and what has become of each letter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import uuid_utils.compat as uuid_utils

from adapters.cursors import make_cursor, offset_of, pagination, time_and_id
from adapters.inbox import UNANSWERED
from adapters.letters import matching
from adapters.personal_data import NOBODY
from adapters.postgres import Connection
from adapters.streams import EVENTS_AGE
from adapters.totals import total_of
from contracts.dead_letters import GetJob, Job, JobItem, ListJobs, ReplayLetters
from contracts.wire import Pagination

RELEASED_A_SECOND = 100
LEASE = timedelta(seconds=20)
"""How long a job is left to the process that works on it; it renews that all the time."""
LOST_AFTER = timedelta(seconds=150)
"""A letter without an answer for so long is looked for on the stream, and sent again if it is lost there: past the
window in which the server takes a second copy for the first."""

# Behind the jobs that wait for a turn: one that always came first would keep the others from ever seeing their answers.
_ADD_JOB = """
INSERT INTO replay_jobs (id, created_by, asked, rate, careful, created_at, leased_until)
VALUES ($1, $2, $3, $4, $5, $6, now())"""


async def begin_job(
    connection: Connection, asked: ReplayLetters, *, by: UUID, at: datetime, state: str = "dead"
) -> tuple[UUID, int]:
    """In the caller's transaction: fix the letters of a new job; its id and their number."""
    job_id = uuid_utils.uuid7()
    filters = asked.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"dry_run", "why"})
    await connection.execute(_ADD_JOB, job_id, by, filters, asked.rate, not asked.at_once, at)
    found, values = matching(asked, state)
    n = len(values) + 1
    done: str = await connection.execute(
        "INSERT INTO replay_items (job_id, place, letter_id, group_name, event_id, user_id) "
        f"SELECT ${n}, row_number() OVER (ORDER BY coalesce(e.position, 0), d.created_at, d.id), d.id, d.group_name, "
        f"d.event_id, d.user_id FROM (SELECT d.* {found} ORDER BY d.created_at, d.id LIMIT ${n + 1}) AS d "
        "LEFT JOIN events e ON e.id = d.event_id",
        *values, job_id, asked.limit,
    )  # fmt: skip
    total = int(done.rpartition(" ")[2])
    await connection.execute("UPDATE replay_jobs SET total = $2 WHERE id = $1", job_id, total)
    return job_id, total


# Held letters of users with nothing before them that is still open, unless a running job has them, or one before them.
# The first of a user's may wait for an event that has become no letter.
_FREE = f"""
SELECT d.id FROM dead_letters d
WHERE d.state = 'held'
    AND NOT EXISTS (SELECT FROM dead_letters b WHERE b.user_id = d.user_id AND b.group_name = d.group_name
        AND b.version < d.version AND b.state = 'dead' AND b.reason <> 'unauthentic')
    AND NOT EXISTS (
        SELECT FROM dead_letters f JOIN events e ON e.aggregate_id = f.user_id AND e.version = f.version - 1
        WHERE f.user_id = d.user_id AND f.group_name = d.group_name AND f.state = 'held' AND f.version <= d.version
            AND {UNANSWERED.format(group="f.group_name", age="$2")})
    AND NOT EXISTS (SELECT FROM dead_letters h JOIN replay_items i ON i.letter_id = h.id
            JOIN replay_jobs j ON j.id = i.job_id
        WHERE h.user_id = d.user_id AND h.group_name = d.group_name AND h.version <= d.version AND h.state = 'held'
            AND i.outcome IS NULL AND j.state = 'running')
ORDER BY d.created_at, d.id LIMIT $1"""


async def release_held(connection: Connection, *, letters_max: int, at: datetime) -> int:
    """In the caller's transaction: begin a job of the held letters that need not wait any more; how many there are."""
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock(hashtext('release held letters'))"):
        return 0
    ids = [row["id"] for row in await connection.fetch(_FREE, letters_max, EVENTS_AGE)]
    if ids:
        asked = ReplayLetters(ids=ids, at_once=True, rate=RELEASED_A_SECOND)
        await begin_job(connection, asked, by=NOBODY, at=at, state="held")
    return len(ids)


@dataclass(frozen=True, slots=True)
class Turn:
    """A job that this process works on for now."""

    job_id: UUID
    rate: float
    careful: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job has come since it was begun or resumed."""

    runs: bool
    """Else only what was sent is waited for."""
    left: int
    """Letters without an outcome, sent or not."""
    in_flight: int
    settled: int
    failed: int


_LEASE = """
UPDATE replay_jobs SET leased_until = now() + $1 WHERE id = (
    SELECT id FROM replay_jobs j WHERE leased_until < now() AND (state = 'running' OR EXISTS (
        SELECT FROM replay_items i WHERE i.job_id = j.id AND i.outcome IS NULL AND i.sent_at IS NOT NULL))
    ORDER BY leased_until LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING id, rate, careful"""
_RENEW = """
UPDATE replay_jobs j SET leased_until = now() + $2 WHERE id = $1
RETURNING state = 'running' AS runs, total - done - failed_again - already_handled - discarded AS left,
    (SELECT count(*) FROM replay_items i WHERE i.job_id = $1 AND outcome IS NULL AND sent_at IS NOT NULL) AS in_flight,
    done + failed_again + already_handled + discarded - settled_before AS settled,
    failed_again - failed_before AS failed"""


async def lease_job(connection: Connection) -> Turn | None:
    """A job that nobody works on, left to the caller for a while: one that runs, or one that was ended with letters on
    their way. The one whose last turn is longest ago comes first."""
    row = await connection.fetchrow(_LEASE, LEASE)
    return None if row is None else Turn(row["id"], row["rate"], row["careful"])


async def renew_lease(connection: Connection, job_id: UUID) -> Progress | None:
    """Keep a job for a while longer; None when it is gone."""
    row = await connection.fetchrow(_RENEW, job_id, LEASE)
    return None if row is None else Progress(**row)


async def give_back_job(connection: Connection, job_id: UUID) -> None:
    """Let the next turn be anybody's, and another job's first."""
    await connection.execute("UPDATE replay_jobs SET leased_until = now() WHERE id = $1", job_id)


@dataclass(frozen=True, slots=True)
class Sendable:
    """A letter whose turn it is, with what its group was sent at first; or an event without one, to be read."""

    place: int
    letter_id: UUID | None
    group: str
    event_id: UUID
    user_id: UUID | None
    event_type: str
    n: int
    body: bytes
    headers: dict[str, str]


# What is closed or dealt with needs no sending, nor what was emptied with its erased user; what is no event of ours
# would only die again, so it stays.
_SETTLE_UNSENT = """
WITH turns AS (
    SELECT place FROM replay_items WHERE job_id = $1 AND outcome IS NULL AND sent_at IS NULL ORDER BY place LIMIT $2
), of_letters AS (
    UPDATE replay_items i SET ended_at = now(),
        outcome = CASE WHEN d.state = 'discarded' THEN 'discarded' WHEN d.state = 'dead' AND d.version IS NULL
            THEN 'failed_again' ELSE 'already_handled' END
    FROM dead_letters d WHERE i.job_id = $1 AND i.outcome IS NULL AND i.sent_at IS NULL AND d.id = i.letter_id
        AND i.place IN (SELECT place FROM turns)
        AND (d.state NOT IN ('dead', 'held') OR d.version IS NULL OR d.body = '' OR EXISTS (
            SELECT FROM inbox b WHERE b.group_name = i.group_name AND b.event_id = i.event_id))
    RETURNING i.letter_id, i.outcome, d.version IS NULL AS stays
), of_events AS (
    UPDATE replay_items i SET ended_at = now(), outcome = 'already_handled'
    WHERE i.job_id = $1 AND i.outcome IS NULL AND i.sent_at IS NULL AND i.letter_id IS NULL
        AND i.place IN (SELECT place FROM turns)
        AND (EXISTS (SELECT FROM inbox b WHERE b.group_name = i.group_name AND b.event_id = i.event_id)
            OR NOT EXISTS (SELECT FROM user_keys k WHERE k.user_id = i.user_id))
    RETURNING i.letter_id, i.outcome, true AS stays
)
SELECT * FROM of_letters UNION ALL SELECT * FROM of_events"""
_NEXT = """
SELECT i.place, i.letter_id, i.group_name, i.event_id, i.user_id, coalesce(d.event_type, e.type) AS event_type,
    coalesce(d.n, 0) AS n, coalesce(d.body, '') AS body, coalesce(d.headers, '{}') AS headers
FROM replay_items i LEFT JOIN dead_letters d ON d.id = i.letter_id
LEFT JOIN events e ON i.letter_id IS NULL AND e.id = i.event_id
WHERE i.job_id = $1 AND i.outcome IS NULL AND i.sent_at IS NULL
    AND NOT EXISTS (SELECT FROM replay_items b WHERE b.job_id = $1 AND b.user_id = i.user_id AND b.outcome IS NULL
        AND b.place < i.place AND b.group_name = i.group_name)
ORDER BY i.place LIMIT $2"""
# What has come of what is on its way: failed is a letter of the same event that is newer than the one replayed, or than
# the job where there was none.
_ON_THEIR_WAY = """
SELECT s.place, EXISTS (
        SELECT FROM inbox b WHERE b.group_name = s.group_name AND b.event_id = s.event_id) AS handled,
    EXISTS (SELECT FROM dead_letters l WHERE l.group_name = s.group_name AND l.event_id = s.event_id
        AND (l.reason <> 'unauthentic' OR l.stream = 'USER_REPLAYS')
        AND CASE WHEN d.id IS NULL THEN l.created_at >= j.created_at ELSE l.n > d.n END) AS failed
FROM replay_items s JOIN replay_jobs j ON j.id = s.job_id LEFT JOIN dead_letters d ON d.id = s.letter_id
WHERE s.job_id = $1 AND s.outcome IS NULL AND s.sent_at IS NOT NULL"""
_SETTLE_SENT = f"""
WITH settled AS (
    UPDATE replay_items i SET ended_at = now(), outcome = CASE WHEN handled THEN 'done' ELSE 'failed_again' END
    FROM ({_ON_THEIR_WAY}) AS seen
    WHERE i.job_id = $1 AND i.place = seen.place AND i.outcome IS NULL AND (handled OR failed)
    RETURNING i.letter_id, i.outcome
)
SELECT letter_id, outcome, letter_id IS NULL AS stays FROM settled"""
_OVERDUE = """
SELECT place, event_id, sent_sequence FROM replay_items
WHERE job_id = $1 AND outcome IS NULL AND sent_at IS NOT NULL AND sent_at < now() - $2::interval LIMIT $3"""
# What was answered just now is gone from the stream, too.
_LOOKED_FOR = f"""
UPDATE replay_items i SET sent_at = CASE WHEN i.place = ANY($3) AND NOT handled AND NOT failed THEN NULL ELSE now() END
FROM ({_ON_THEIR_WAY}) AS seen
WHERE i.job_id = $1 AND i.place = seen.place AND i.place = ANY($2) AND i.outcome IS NULL"""
_CLOSE = """
UPDATE dead_letters d SET state_at = now(), state_by = NULL, state_why = NULL,
    state = CASE WHEN s.outcome = 'failed_again' THEN 'failed_again' ELSE 'replayed' END
FROM unnest($1::uuid[], $2::text[]) AS s (id, outcome) WHERE d.id = s.id AND d.state IN ('dead', 'held')"""


@dataclass(frozen=True, slots=True)
class Overdue:
    """A letter that was sent long ago and has no outcome, and where its message stands on the stream."""

    place: int
    event_id: UUID
    sequence: int | None


async def overdue_letters(connection: Connection, job_id: UUID, *, letters_max: int) -> list[Overdue]:
    """Those that are to be looked for on the stream."""
    rows = await connection.fetch(_OVERDUE, job_id, LOST_AFTER, letters_max)
    return [Overdue(row["place"], row["event_id"], row["sent_sequence"]) for row in rows]


async def note_looked_for(connection: Connection, job_id: UUID, places: Sequence[int], *, lost: Sequence[int]) -> None:
    """These were looked for: what is lost is to be sent again, the others are looked for later once more."""
    await connection.execute(_LOOKED_FOR, job_id, places, lost)


async def settle(connection: Connection, job_id: UUID, *, unsent_max: int) -> list[str]:
    """In the caller's transaction: note what the group has answered, and close those letters; the new outcomes."""
    rows = [
        *await connection.fetch(_SETTLE_SENT, job_id),
        *await connection.fetch(_SETTLE_UNSENT, job_id, unsent_max),
    ]
    if not rows:
        return []
    closed = [row for row in rows if row["outcome"] != "discarded" and not row["stays"]]
    await connection.execute(_CLOSE, [row["letter_id"] for row in closed], [row["outcome"] for row in closed])
    outcomes = [row["outcome"] for row in rows]
    await connection.execute(_COUNT, job_id, *(outcomes.count(kind) for kind in _OUTCOMES))
    return outcomes


_OUTCOMES = ("done", "failed_again", "already_handled", "discarded")
_COUNT = """
UPDATE replay_jobs SET done = done + $2, failed_again = failed_again + $3, already_handled = already_handled + $4,
    discarded = discarded + $5
WHERE id = $1"""


async def next_letters(connection: Connection, job_id: UUID, letters_max: int) -> list[Sendable]:
    """Letters whose turn it is: none of a user's whose earlier one is not settled."""
    rows = await connection.fetch(_NEXT, job_id, letters_max)
    return [
        Sendable(
            row["place"], row["letter_id"], row["group_name"], row["event_id"], row["user_id"], row["event_type"],
            row["n"], row["body"], row["headers"],
        )
        for row in rows
    ]  # fmt: skip


_SENT = """
UPDATE replay_items i SET sent_at = now(), sent_sequence = s.sequence
FROM unnest($2::integer[], $3::bigint[]) AS s (place, sequence)
WHERE i.job_id = $1 AND i.place = s.place AND i.outcome IS NULL"""


async def mark_sent(connection: Connection, job_id: UUID, sent: Mapping[int, int]) -> None:
    """The stream has them: place and sequence of each."""
    await connection.execute(_SENT, job_id, list(sent), list(sent.values()))


_UNREADABLE = """
WITH given_up AS (
    UPDATE replay_items SET outcome = 'failed_again', ended_at = now()
    WHERE job_id = $1 AND place = ANY($2) AND outcome IS NULL RETURNING place
)
UPDATE replay_jobs SET failed_again = failed_again + (SELECT count(*) FROM given_up) WHERE id = $1"""


async def give_up(connection: Connection, job_id: UUID, places: Sequence[int]) -> None:
    """These cannot be sent: the key that opens them is missing here."""
    await connection.execute(_UNREADABLE, job_id, places)


_END = """
UPDATE replay_jobs SET state = $2, why = $3, ended_at = now() WHERE id = $1 AND state = 'running' RETURNING id"""


async def end_job(connection: Connection, job_id: UUID, state: str, why: str | None = None) -> bool:
    """Done, stopped or cancelled; False when it did not run."""
    return await connection.fetchval(_END, job_id, state, why) is not None


async def resume_job(connection: Connection, job_id: UUID) -> bool:
    """Let a stopped or cancelled job run on; False when it is neither."""
    found = await connection.fetchval(
        "UPDATE replay_jobs SET state = 'running', why = NULL, ended_at = NULL, leased_until = now(), "
        "settled_before = done + failed_again + already_handled + discarded, failed_before = failed_again "
        "WHERE id = $1 AND state IN ('stopped', 'cancelled') RETURNING id",
        job_id,
    )
    return found is not None


_JOB = """
SELECT j.id, j.created_by, j.asked, j.rate, j.state, j.why, j.created_at, j.ended_at, j.total, j.done, j.failed_again,
    j.already_handled, j.discarded, s.sent,
    j.total - j.done - j.failed_again - j.already_handled - j.discarded - s.sent AS waiting
FROM replay_jobs j CROSS JOIN LATERAL (
    SELECT count(*) AS sent FROM replay_items i
    WHERE i.job_id = j.id AND i.outcome IS NULL AND i.sent_at IS NOT NULL) AS s"""


async def job_of(connection: Connection, job_id: UUID) -> Job | None:
    """A job and how far it has come."""
    row = await connection.fetchrow(f"{_JOB} WHERE j.id = $1", job_id)
    return None if row is None else Job.model_validate(dict(row))


async def list_jobs(connection: Connection, query: ListJobs) -> tuple[list[Job], Pagination]:
    """A page of jobs, newest first."""
    after = time_and_id(query.cursor)
    beyond = "WHERE (j.created_at, j.id) < ($1::timestamptz, $2::uuid)" if after else ""
    n = len(after) + 1
    rows = await connection.fetch(
        f"{_JOB} {beyond} ORDER BY j.created_at DESC, j.id DESC OFFSET ${n} LIMIT ${n + 1}",
        *after, offset_of(query), query.limit + 1,
    )  # fmt: skip
    counted = await total_of(connection, query, "FROM replay_jobs j", [], rows_read=len(rows))
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = make_cursor(shown[-1]["created_at"].isoformat(), shown[-1]["id"]) if more else None
    return [Job.model_validate(dict(row)) for row in shown], pagination(query, counted=counted, next_cursor=cursor)


async def items_of(connection: Connection, query: GetJob) -> tuple[list[JobItem], bool]:
    """Some of a job's letters in the order of their turns; and whether there are more."""
    wanted = {None: "true", "waiting": "outcome IS NULL"}.get(query.outcome, "outcome = $4")
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT place, letter_id, event_id, user_id, sent_at, outcome, ended_at FROM replay_items "
        f"WHERE job_id = $1 AND place > $2 AND {wanted} ORDER BY place LIMIT $3",
        query.job_id, query.after, query.limit + 1, *([query.outcome] if "$4" in wanted else []),
    )  # fmt: skip
    return [JobItem.model_validate(dict(row)) for row in rows[: query.limit]], len(rows) > query.limit
