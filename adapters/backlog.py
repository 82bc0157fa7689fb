"""What waits in the tables, counted for dashboards and alerts."""

from dataclasses import dataclass
from datetime import timedelta

from adapters.postgres import Connection

OUTBOX = """
SELECT count(*) AS waiting, coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 AS age_s
FROM outbox"""


async def outbox_backlog(connection: Connection) -> tuple[int, float]:
    """How many events are not announced yet, and the age of the oldest in seconds."""
    row = await connection.fetchrow(OUTBOX)
    assert row is not None  # noqa: S101 - aggregates without GROUP BY: one row, always
    return row["waiting"], row["age_s"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for an operator or for the group `jobs`; times in seconds, 0 where nothing waits."""

    letters_unannounced: int
    erasure_overdue_s: float
    replays_running: int
    replay_idle_s: float
    """How long the running replay that is worst off has neither sent a letter nor heard of one."""


_BACKLOG = """
SELECT (SELECT count(*) FROM dead_letters WHERE announced_at IS NULL AND state <> 'held') AS letters_unannounced,
    (SELECT coalesce(greatest(extract(epoch FROM clock_timestamp() - min(deleted_at) - $1), 0), 0)::float8
        FROM users WHERE status = 'deleted' AND NOT is_swept) AS erasure_overdue_s,
    count(*) AS replays_running,
    coalesce(max(extract(epoch FROM clock_timestamp() - greatest(j.created_at, moved.at))), 0)::float8 AS replay_idle_s
FROM replay_jobs j CROSS JOIN LATERAL (
    SELECT max(greatest(i.sent_at, i.ended_at)) AS at FROM replay_items i WHERE i.job_id = j.id) AS moved
WHERE j.state = 'running'"""


async def backlog(connection: Connection, *, erase_after: timedelta) -> Backlog:
    """All of it, as it is now."""
    row = await connection.fetchrow(_BACKLOG, erase_after)
    assert row is not None  # noqa: S101 - aggregates without GROUP BY: one row, always
    return Backlog(**row)


async def letters_by_kind(connection: Connection, state: str) -> dict[tuple[str, str], int]:
    """Letters of a state, by group and reason."""
    rows = await connection.fetch(
        "SELECT group_name, reason, count(*) AS letters FROM dead_letters WHERE state = $1 GROUP BY 1, 2", state
    )
    return {(row["group_name"], row["reason"]): row["letters"] for row in rows}
