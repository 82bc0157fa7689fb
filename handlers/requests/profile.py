"""Profiles."""

from adapters.users import profile_view
from contracts.profile import GetProfile, ProfileShown, ProfileUpdated, UpdateProfile
from contracts.users import PublicProfile
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers
from handlers.visibility import visible_account


async def get_profile(ctx: Context, call: Call, request: GetProfile) -> ProfileShown:
    """The whole profile for its owner, the public part for everybody else."""
    account = await visible_account(ctx, call, request.user_id)
    if request.user_id == call.signed_in.user_id:
        return ProfileShown(profile=account.profile)
    public = {name: getattr(account.profile, name) for name in PublicProfile.model_fields}
    return ProfileShown(profile=PublicProfile(**public))


async def update_profile(ctx: Context, call: Call, request: UpdateProfile) -> ProfileUpdated:
    """Change what the caller shows of themselves."""
    changes: dict[str, object] = {
        name: getattr(request, name) for name in request.model_fields_set - {"expected_revision", "notifications"}
    }
    if request.notifications is not None:
        changes["notifications"] = request.notifications.model_dump(exclude_unset=True)
    at = ctx.now()
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        user.change(changes, expected_revision=request.expected_revision, at=at)
        await work.users.save(user)
        reply = ProfileUpdated(profile=profile_view(user, user.updated_at))
        await work.commit(reply)
    return reply


HANDLERS: Handlers = {GetProfile: get_profile, UpdateProfile: update_profile}
