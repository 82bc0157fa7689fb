"""The end of an account, and all that is held about it."""

from adapters.admins import require_another_admin
from adapters.exports import read_export
from adapters.limits import Window
from contracts.account import DeleteMe, Exported, ExportMe
from contracts.wire import Empty
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers
from handlers.proofs import accept, prove


async def delete_me(ctx: Context, call: Call, request: DeleteMe) -> Empty:
    """End the caller's account at once; its data is erased by a job, after the grace period."""
    proof = await prove(ctx, call, request.password, code=request.code, backup_code=request.backup_code)
    at = ctx.now()
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        await work.end_sessions(user, reason="account_deleted", at=at)
        await work.links.void_all_but(user.id, at=at)
        if user.role == "admin":
            await require_another_admin(work.connection, user.id)
        user.delete(by="user", at=at)
        await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    return reply


async def export_me(ctx: Context, call: Call, request: ExportMe) -> Exported:
    """All that is held about the caller, as it stood at one moment."""
    proof = await prove(ctx, call, request.password, code=request.code, backup_code=request.backup_code)
    user_id, rate = call.signed_in.user_id, ctx.settings.limit_export
    await ctx.limits.reserve([Window("api:export", str(user_id), rate.tries_max, rate.window_s)])
    reply = Exported(export=await read_export(ctx.database, ctx.personal, user_id, after=request.cursor, at=ctx.now()))
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        user.data_exported(at=ctx.now())
        await work.users.save(user)
        await work.commit(reply)
    return reply


HANDLERS: Handlers = {DeleteMe: delete_me, ExportMe: export_me}
