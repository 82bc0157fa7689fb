"""What has become of a user, a mail or a request."""

from adapters.audit_log import AuditRow, add_audit_row
from adapters.streams import EVENT_GROUPS
from adapters.timeline import timeline_of
from contracts.timeline import GetTimeline, Timeline
from contracts.wire import Pagination
from domain.refusals import NotFound
from handlers.callers import require_permission
from handlers.context import Call, Context, Handlers


async def timeline_get(ctx: Context, call: Call, request: GetTimeline) -> Timeline:
    """One list in order of time, with what still waits, and why, at its end."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        found = await timeline_of(
            connection, request, EVENT_GROUPS, pauses_s=ctx.settings.delivery_pauses, now=ctx.now()
        )
        if found is None:
            raise NotFound
        row = AuditRow(
            action="timeline_viewed",
            success=True,
            at=ctx.now(),
            user_id=request.user_id,
            details={} if request.request_id is None else {"requestId": request.request_id},
        )
        await add_audit_row(connection, ctx.personal, call.trail, row)
    steps, more = found
    return Timeline(
        items=steps,
        pagination=Pagination(
            page=None, limit=request.limit, total=len(steps), total_pages=1, has_next=more, has_prev=False
        ),
    )


HANDLERS: Handlers = {GetTimeline: timeline_get}
