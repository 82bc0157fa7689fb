"""Mail that anybody may ask for by naming an address: known or not, the answer and the rows written are alike."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from adapters.addresses import email_key
from adapters.audit_log import AuditRow
from adapters.limits import LimitReached
from adapters.strangers import count_stranger
from adapters.unit_of_work import UnitOfWork
from adapters.users import owner_of
from contracts.operations import Limit
from contracts.wire import Empty
from domain.user import User
from handlers.context import Call, Context
from handlers.tries import by_who_and_source

Ask = Callable[[UnitOfWork, User, datetime], Awaitable[None]]
"""Has the mail sent to a locked user, if it is theirs to have now."""


async def ask_for_mail(ctx: Context, call: Call, email: str, ask: Ask, *, action: str) -> Empty:
    """Let the owner of an address be mailed; past the limits nothing comes of it, in silence."""
    at, key, rates = ctx.now(), email_key(email), ctx.settings
    try:
        await ctx.limits.reserve(
            by_who_and_source(ctx, call, Limit.MAIL, key, rates.limit_mail_address, rates.limit_mail_source)
        )
    except LimitReached:
        async with ctx.unit_of_work(call, one_statement=True) as work:
            await work.commit(Empty())  # asked again by the same key, it is not mailed later instead
        return Empty()
    async with ctx.database.connection() as connection:
        owner = await owner_of(connection, key)
    async with ctx.unit_of_work(call) as work:
        user = None if owner is None else await work.users.lock(owner)
        if user is None:
            await count_stranger(work.connection, key, at=at)
        else:
            await ask(work, user, at)
        owner = user.id if user else None
        await work.audit(AuditRow(action=action, success=True, at=at, user_id=owner, personal={"email": email}))
        reply = Empty()
        await work.commit(reply)
    return reply
