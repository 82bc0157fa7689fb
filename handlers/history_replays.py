"""`events replay`: hands a group a stretch of history again, as a job; what it has done is not repeated."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

from adapters.audit_log import AuditRow, add_audit_row
from adapters.event_log import Trail
from adapters.history_replays import (
    DISORDER,
    EVENTS_MAX,
    Found,
    Stretch,
    Waiting,
    begin_history_job,
    count_stretch,
    position_at,
    position_of,
    sample_stretch,
)
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.replays import job_of
from adapters.streams import EVENT_GROUPS
from contracts.dead_letters import Job

SAMPLE_MAX = 5
POLL_S = 0.5
POSITION_MAX = 2**63 - 1
PASS_EVENTS_MAX = 1024
"""By so much the order on the stream may differ from that of positions: a relay announces many users at once."""

Bound = int | datetime
"""A position of table `events`, or a time."""


class NotPossible(Exception):
    """What was asked for makes no replay; the message says why."""


@dataclass(frozen=True, slots=True)
class Begun:
    """`job_id` is None after a dry run, and where nothing is to be delivered."""

    job_id: UUID | None
    found: Found
    sample: list[Waiting]


async def replay_history(
    database: Database, personal: PersonalData, group: str, start: Bound, end: Bound, *, at_work_from: UUID | None,
    dry_run: bool, rate: float, careful: bool, by: str,
) -> Begun:  # fmt: skip
    """Count what the group has dealt with, and begin a job for the rest, in the order of the events.

    What the group is at by itself, from the event `at_work_from` on, is left to it: two deliveries of one event in two
    processes would both find it not done.
    """
    if group not in EVENT_GROUPS:
        raise NotPossible(f"no such group: {group}; there are {', '.join(EVENT_GROUPS)}")
    if _is_backwards(start, end):
        raise NotPossible("nothing lies between them: the end must be behind the start")
    async with database.transaction() as connection:
        stretch = await _stretch(connection, group, start, end)
        if at_work_from is not None and (position := await position_of(connection, at_work_from)) is not None:
            stretch = replace(stretch, end=min(stretch.end, position - PASS_EVENTS_MAX))
        found = await count_stretch(connection, stretch)
        if found.to_deliver > EVENTS_MAX and not dry_run:
            raise NotPossible(f"{found.to_deliver} events wait for {group}; take a stretch of {EVENTS_MAX} at most")
        sample = await sample_stretch(connection, stretch, events_max=SAMPLE_MAX) if found.to_deliver else []
        if dry_run or not found.to_deliver:
            return Begun(None, found, sample)
        asked = {"group": group, "from": _said(start), "to": _said(end), "operator": by}
        job_id = await begin_history_job(connection, stretch, found, asked=dict(asked), rate=rate, careful=careful)
        row = AuditRow(
            action="events_replayed", success=True, at=datetime.now(UTC), resource="stream",
            details={**asked, "jobId": str(job_id), "count": found.to_deliver},
        )  # fmt: skip
        await add_audit_row(connection, personal, Trail(request_id=f"cli-{uuid4()}"), row)
    return Begun(job_id, found, sample)


async def _stretch(connection: Connection, group: str, start: Bound, end: Bound) -> Stretch:
    since, until = (bound if isinstance(bound, datetime) else None for bound in (start, end))
    return Stretch(
        group,
        await position_at(connection, start - DISORDER) if isinstance(start, datetime) else start,
        await position_at(connection, end + DISORDER) if isinstance(end, datetime) else end,
        since,
        until,
    )


def _said(bound: Bound) -> str:
    return bound.isoformat() if isinstance(bound, datetime) else str(bound)


async def watch_job(database: Database, job_id: UUID, tell: Callable[[int, int], None]) -> Job:
    """Until it has ended; it goes on without a watcher, too."""
    while True:
        async with database.connection() as connection:
            job = await job_of(connection, job_id)
        if job is None:
            raise NotPossible(f"replay {job_id} is gone")
        tell(job.total - job.waiting - job.sent, job.total)
        if job.state != "running":
            return job
        await asyncio.sleep(POLL_S)


def _is_backwards(start: Bound, end: Bound) -> bool:
    if isinstance(start, int) and isinstance(end, int):
        return start >= end
    return isinstance(start, datetime) and isinstance(end, datetime) and start >= end
