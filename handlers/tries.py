"""Tries of a password: counted before the hash, given back when it was right, stored when it was wrong.

A source is a known device, else the end user's address. Five failures shut one source out of one account; fifty over
all sources shut out whoever comes from no known device, and mail the owner a way in.
"""

from datetime import datetime, timedelta
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.addresses import email_key
from adapters.audit_log import AuditRow
from adapters.limits import LimitReached, Reservation, Window
from adapters.links import Link
from adapters.settings import Rate
from adapters.strangers import count_stranger
from adapters.unit_of_work import UnitOfWork
from contracts.operations import Limit
from domain.refusals import AccountLocked, Refusal, WrongCredentials
from domain.user import User
from handlers.context import Call, Context

_OVER_ALL_SOURCES = f"{Limit.LOGIN.value}:account"


async def reserve_try(ctx: Context, call: Call, key: str, *, device_known: bool, unlocked: UUID | None) -> Reservation:
    """Count a try of an account's password; raises `RateLimited`, and to a known device `AccountLocked`.

    `unlocked` is the account's id where its row is not locked, as far as is known.
    """
    try:
        tries = await ctx.limits.reserve(_windows(ctx, call, key, device_known=device_known))
    except LimitReached as refusal:
        ctx.metrics.authentications.labels("limited", "password").inc()
        if not device_known:
            if unlocked is not None and refusal.limit == _OVER_ALL_SOURCES and refusal.retry_after_s > 1:
                await _lock_late(ctx, call, unlocked, refusal)
            raise
        call.reply_headers.update(refusal.headers)
        raise AccountLocked(ctx.now() + timedelta(seconds=refusal.retry_after_s)) from refusal
    call.reply_headers.update(tries.headers)
    return tries


def _windows(ctx: Context, call: Call, key: str, *, device_known: bool) -> tuple[Window, ...]:
    """A known device is a source of its own: whoever shares its address cannot use up its tries."""
    rates = ctx.settings
    device = f"device:{call.device_hash.hex()[:32]}" if device_known and call.device_hash else None
    pair = Window(
        Limit.LOGIN.value, f"{key}:{device or call.source}", rates.limit_login.tries_max, rates.limit_login.window_s,
        locks=True, cleared_with=key,
    )  # fmt: skip
    over_all = Window(
        _OVER_ALL_SOURCES, key, rates.limit_login_account.tries_max, rates.limit_login_account.window_s,
        locks=True, refuses=device is None, cleared_with=key,
    )  # fmt: skip
    return (
        (pair, over_all) if device else (pair, _by_source(ctx, call, Limit.LOGIN, rates.limit_login_source), over_all)
    )


async def give_back(ctx: Context, call: Call, tries: Reservation) -> None:
    """The try does not count after all: the password was right, or nothing was learnt of it."""
    await ctx.limits.give_back(tries)
    call.reply_headers.update(tries.given_back().headers)


async def forgive(ctx: Context, call: Call, tries: Reservation, key: str, *, device_known: bool) -> None:
    """Whoever has signed in had only mistyped before: the failures of their source are forgotten, those from elsewhere
    are not."""
    pair, *_ = _windows(ctx, call, key, device_known=device_known)
    await ctx.limits.give_back(tries, emptied=[pair])
    call.reply_headers.update(tries.given_back().headers)


async def clear_tries(ctx: Context, email: str) -> None:
    """Forget all failures of an account, from every source; to be called once its lock has been taken off."""
    rates = ctx.settings
    await ctx.limits.clear(
        email_key(email), within_s=max(rates.limit_login.window_s, rates.limit_login_account.window_s)
    )


def by_who_and_source(
    ctx: Context, call: Call, limit: Limit, who: str, by_who: Rate, by_source: Rate
) -> tuple[Window, ...]:
    """Tries for an address from wherever, and of a source over all addresses."""
    return (
        Window(limit.value, who, by_who.tries_max, by_who.window_s),
        _by_source(ctx, call, limit, by_source),
    )


def _by_source(ctx: Context, call: Call, limit: Limit, by_source: Rate) -> Window:
    """All end users of a gateway that names no address share one source: it has a figure of its own."""
    rate = by_source if call.client_ip else ctx.settings.limit_bus_client
    return Window(f"{limit.value}:source", call.source, rate.tries_max, rate.window_s)


async def record_refused(
    ctx: Context,
    call: Call,
    work: UnitOfWork,
    address: str,
    user: User | None,
    refusal: Refusal,
    *,
    tries: Reservation | None = None,
) -> None:
    """The same rows for a known and an unknown address: one that counts the failure, one in the audit log.

    The try that fills the count over all sources locks the account.
    """
    at = ctx.now()
    if user is None:
        await count_stranger(work.connection, email_key(address), at=at)
    elif isinstance(refusal, WrongCredentials):
        user.refuse_password(origin=call.origin, at=at)
        if tries is not None and _OVER_ALL_SOURCES in tries.filled and not user.is_locked(at):
            # The counts open again from when the try was counted, before the hash: whoever gets in then clears the row.
            left_s = ctx.settings.limit_login_account.window_s - tries.age_s
            await _lock(ctx, work, user, until=at + timedelta(seconds=left_s), at=at)
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


async def _lock_late(ctx: Context, call: Call, user_id: UUID, refusal: LimitReached) -> None:
    """The try that filled the count was cut off before it could lock the row: the next one does, so that the owner is
    mailed their way in."""
    async with ctx.unit_of_work(call) as work:
        user, at = await work.users.lock(user_id), ctx.now()
        if user is None or user.status != "active" or user.is_locked(at):
            return
        await _lock(ctx, work, user, until=at + timedelta(seconds=refusal.retry_after_s), at=at)
        await work.users.save(user)
        await work.commit(refusal)


async def _lock(ctx: Context, work: UnitOfWork, user: User, *, until: datetime, at: datetime) -> None:
    """An unlock link that is still good is mailed again: of all that an attack makes us send, each stays good."""
    link = await work.links.newest_open(user.id, "unlock", user.email, at=at)
    if link is None:
        expires_at = at + ctx.settings.lifetimes.unlock_link
        link = Link(id=uuid_utils.uuid7(), user_id=user.id, purpose="unlock", address=user.email, expires_at=expires_at)
        await work.links.open(link, at=at)
    user.lock(until=until, token_id=link.id, expires_at=link.expires_at, at=at)
    ctx.metrics.lockouts.inc()
