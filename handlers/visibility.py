"""Whom a signed-in caller may see at all."""

from uuid import UUID

from adapters.users import Account
from domain.refusals import NotFound
from handlers.context import Call, Context


async def visible_account(ctx: Context, call: Call, user_id: UUID) -> Account:
    """The account of somebody active, who has shown to own their address where such are hidden; raises `NotFound`."""
    account = await ctx.accounts.get(user_id)
    if account is None or account.user.status != "active":
        raise NotFound
    if ctx.hides(account.user) and user_id != call.signed_in.user_id:
        raise NotFound
    return account
