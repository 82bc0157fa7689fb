"""Tries of a password: counted before the hash, given back when it was right, stored when it was wrong."""

from adapters.audit_log import AuditRow
from adapters.limits import Reservation, Window
from adapters.settings import Rate
from adapters.unit_of_work import UnitOfWork
from contracts.operations import Limit
from domain.refusals import Refusal, WrongCredentials
from domain.user import User
from handlers.context import Call, Context


async def reserve_try(ctx: Context, call: Call, key: str) -> Reservation:
    """Count a try of an account's password, by account and source and by source; raises `RateLimited`."""
    pair, rates = f"{key}:{call.source}", ctx.settings  # so nobody locks a stranger out
    tries = await ctx.limits.reserve(
        by_who_and_source(ctx, call, Limit.LOGIN, pair, rates.limit_login, rates.limit_login_source)
    )
    call.reply_headers.update(tries.headers)
    return tries


async def give_back(ctx: Context, call: Call, tries: Reservation) -> None:
    """The try does not count after all: the password was right, or nothing was learnt of it."""
    await ctx.limits.give_back(tries)
    call.reply_headers.update(tries.given_back().headers)


def by_who_and_source(
    ctx: Context, call: Call, limit: Limit, who: str, by_who: Rate, by_source: Rate
) -> tuple[Window, ...]:
    """Tries for an address from wherever, or from one source, and of a source over all addresses.

    All end users of a gateway that names no address share one source: it has a figure of its own.
    """
    rate = by_source if call.client_ip else ctx.settings.limit_bus_client
    return (
        Window(limit.value, who, by_who.tries_max, by_who.window_s),
        Window(f"{limit.value}:source", call.source, rate.tries_max, rate.window_s),
    )


async def record_refused(
    ctx: Context, call: Call, work: UnitOfWork, address: str, user: User | None, refusal: Refusal
) -> None:
    """The same audit row for a known and an unknown address; a known one counts its wrong passwords besides."""
    at = ctx.now()
    if user is not None and isinstance(refusal, WrongCredentials):
        user.refuse_password(origin=call.origin, at=at)
        await work.users.save(user)
    await work.audit(
        AuditRow(
            action="login_refused",
            success=False,
            at=at,
            user_id=user.id if user else None,
            details={"reason": refusal.code},
            personal={"email": address},
        )
    )
