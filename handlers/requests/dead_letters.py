"""What operators do with dead letters: look, replay, discard, restore. Every act and every look is an audit row."""

from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

from pydantic import JsonValue

from adapters.audit_log import AuditRow, add_audit_row
from adapters.letters import (
    discard_letters,
    group_letters,
    list_letters,
    oldest_and_newest,
    restore_letters,
    whole_letter,
)
from adapters.postgres import Connection
from adapters.replays import begin_job, end_job, items_of, job_of, list_jobs, resume_job
from contracts.dead_letters import (
    CancelJob,
    Discarded,
    DiscardLetters,
    GetJob,
    GetLetter,
    GroupLetters,
    Job,
    JobChanged,
    JobPage,
    JobShown,
    LetterGroups,
    LetterPage,
    LetterShown,
    ListJobs,
    ListLetters,
    ReplayBegun,
    ReplayLetters,
    Restored,
    RestoreLetters,
    ResumeJob,
)
from contracts.wire import Wire
from domain.refusals import NotFound, StateConflict
from handlers.callers import require_permission
from handlers.context import Call, Context, Handlers

SAMPLE_MAX = 5


async def groups(ctx: Context, call: Call, request: GroupLetters) -> LetterGroups:
    """What letters have died of."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        found = await group_letters(connection, request)
        await add_audit_row(connection, ctx.personal, call.trail, _act(ctx, "dead_letters_listed", request))
    return found


async def letters_list(ctx: Context, call: Call, request: ListLetters) -> LetterPage:
    """A page of letters."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        letters, pagination = await list_letters(connection, request)
        await add_audit_row(connection, ctx.personal, call.trail, _act(ctx, "dead_letters_listed", request))
    return LetterPage(items=letters, pagination=pagination)


async def letters_get(ctx: Context, call: Call, request: GetLetter) -> LetterShown:
    """One letter with its exact bytes."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        letter = await whole_letter(connection, request.letter_id)
        if letter is None:
            raise NotFound
        row = _act(ctx, "dead_letter_viewed", request, user_id=letter.user_id)
        await add_audit_row(connection, ctx.personal, call.trail, row)
    return LetterShown(letter=letter)


async def replay(ctx: Context, call: Call, request: ReplayLetters) -> ReplayBegun:
    """Fix a list of letters and have them replayed, or only say which they would be."""
    async with ctx.unit_of_work(call) as work:
        await require_permission(ctx, work.connection, call)
        job_id = None
        matched, oldest, newest, sample = await oldest_and_newest(
            work.connection, request, letters_max=request.limit, sample_max=SAMPLE_MAX
        )
        if matched and not request.dry_run:
            job_id, matched = await begin_job(work.connection, request, by=call.signed_in.user_id, at=ctx.now())
        await work.audit(_act(ctx, "dead_letters_replayed", request, job_id=job_id, count=matched))
        reply = ReplayBegun(job_id=job_id, matched=matched, oldest=oldest, newest=newest, sample=sample)
        await work.commit(reply)
    return reply


async def jobs_list(ctx: Context, call: Call, request: ListJobs) -> JobPage:
    """A page of replays."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        jobs, pagination = await list_jobs(connection, request)
        await add_audit_row(connection, ctx.personal, call.trail, _act(ctx, "replays_listed", request))
    return JobPage(items=jobs, pagination=pagination)


async def jobs_get(ctx: Context, call: Call, request: GetJob) -> JobShown:
    """How far a replay has come, and with which letter what."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        job = await _job(connection, request.job_id)
        items, more = await items_of(connection, request)
        await add_audit_row(connection, ctx.personal, call.trail, _act(ctx, "replay_viewed", request))
    return JobShown(job=job, items=items, more=more)


async def jobs_cancel(ctx: Context, call: Call, request: CancelJob) -> JobChanged:
    """Send no more of a replay."""
    return await _change_job(ctx, call, request, partial(end_job, state="cancelled"), "replay_cancelled")


async def jobs_resume(ctx: Context, call: Call, request: ResumeJob) -> JobChanged:
    """Go on with what is left of a replay."""
    return await _change_job(ctx, call, request, resume_job, "replay_resumed")


async def _change_job(
    ctx: Context, call: Call, request: CancelJob | ResumeJob, change: Callable[[Connection, UUID], Awaitable[bool]],
    action: str,
) -> JobChanged:  # fmt: skip
    async with ctx.unit_of_work(call) as work:
        await require_permission(ctx, work.connection, call)
        changed = await change(work.connection, request.job_id)
        reply = JobChanged(job=await _job(work.connection, request.job_id))
        if not changed:
            raise StateConflict
        await work.audit(_act(ctx, action, request))
        await work.commit(reply)
    return reply


async def discard(ctx: Context, call: Call, request: DiscardLetters) -> Discarded:
    """Close letters that nobody will replay."""
    async with ctx.unit_of_work(call) as work:
        await require_permission(ctx, work.connection, call)
        by = call.signed_in.user_id
        reply = Discarded(count=await discard_letters(work.connection, request, by=by, at=ctx.now()))
        await work.audit(_act(ctx, "dead_letters_discarded", request, count=reply.count))
        await work.commit(reply)
    return reply


async def restore(ctx: Context, call: Call, request: RestoreLetters) -> Restored:
    """Open letters again that were discarded."""
    async with ctx.unit_of_work(call) as work:
        await require_permission(ctx, work.connection, call)
        by = call.signed_in.user_id
        reply = Restored(count=await restore_letters(work.connection, request, by=by, at=ctx.now()))
        await work.audit(_act(ctx, "dead_letters_restored", request, count=reply.count))
        await work.commit(reply)
    return reply


async def _job(connection: Connection, job_id: UUID) -> Job:
    job = await job_of(connection, job_id)
    if job is None:
        raise NotFound
    return job


def _act(
    ctx: Context, action: str, request: Wire, *, user_id: UUID | None = None, **found: UUID | int | None
) -> AuditRow:
    """What was asked, word for word, and what came of it."""
    asked: dict[str, JsonValue] = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked.pop("cursor", None)
    told: dict[str, JsonValue] = {
        name: str(value) if isinstance(value, UUID) else value for name, value in found.items() if value is not None
    }
    return AuditRow(
        action=action, success=True, at=ctx.now(), user_id=user_id, resource="dead_letter", details=asked | told
    )


HANDLERS: Handlers = {
    GroupLetters: groups,
    ListLetters: letters_list,
    GetLetter: letters_get,
    ReplayLetters: replay,
    ListJobs: jobs_list,
    GetJob: jobs_get,
    CancelJob: jobs_cancel,
    ResumeJob: jobs_resume,
    DiscardLetters: discard,
    RestoreLetters: restore,
}
