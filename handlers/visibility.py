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
    is_hidden = ctx.settings.hide_registered_emails and not account.user.email_verified
    if is_hidden and user_id != call.signed_in.user_id:
        raise NotFound
    return account
