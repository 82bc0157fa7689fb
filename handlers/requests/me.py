"""The caller's own account."""

from adapters.users import user_view
from contracts.me import GetMe, Me, MeUpdated, UpdateMe
from domain.refusals import NotFound
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers


async def get_me(ctx: Context, call: Call, _: GetMe) -> Me:
    """The caller's account and whole profile."""
    account = await ctx.accounts.get(call.signed_in.user_id)
    if account is None:
        raise NotFound
    return Me(user=account.user, profile=account.profile)


async def update_me(ctx: Context, call: Call, request: UpdateMe) -> MeUpdated:
    """Change the caller's name."""
    changes: dict[str, object] = {
        name: getattr(request, name) for name in request.model_fields_set - {"expected_revision"}
    }
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        user.change(changes, expected_revision=request.expected_revision, at=ctx.now())
        await work.users.save(user)
        reply = MeUpdated(user=user_view(user))
        await work.commit(reply)
    return reply


HANDLERS: Handlers = {GetMe: get_me, UpdateMe: update_me}
