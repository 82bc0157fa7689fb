"""Second-factor codes: counted before they are looked at, used up with the act that they are for, stored when they are
wrong."""

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn
from uuid import UUID

from adapters.audit_log import AuditRow
from adapters.limits import Reservation, Window
from adapters.totp import matching_steps
from adapters.unit_of_work import UnitOfWork
from contracts.operations import Limit
from domain.refusals import Fault, InvalidInput, Overloaded, RateLimited, Stale, Unavailable, WrongCode
from domain.two_factor import Factor, Method, backup_code_form, totp_form
from domain.user import User
from handlers.callers import lock_caller
from handlers.context import Call, Context
from handlers.tries import give_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A code that was right when it was looked at, and is not used up yet."""

    factor_id: UUID
    wrong_codes: int
    """In a row when it was looked at; if there are more by now, it may be nobody's turn."""
    step: int | None = None
    backup_hash: bytes | None = None

    @property
    def method(self) -> Method:
        return "totp" if self.step is not None else "backup-code"


def require_one(code: str | None, backup_code: str | None) -> None:
    """Either a code or a backup code; raises `InvalidInput`."""
    if code is None and backup_code is None:
        raise InvalidInput([Fault("code", "required", "This field is required.")])
    if code is not None and backup_code is not None:
        raise InvalidInput([Fault("backupCode", "one_only", "Send a code or a backup code, not both.")])


def require_may_try(ctx: Context, factor: Factor) -> None:
    """Raises `RateLimited` for an unknown device after many wrong codes in a row."""
    if ctx.settings.rate_limits == "on":
        factor.require_may_try(ctx.settings.wrong_codes, at=ctx.now())


async def reserve_code(ctx: Context, call: Call, user_id: UUID) -> Reservation:
    """Count a try of an account's code, over all its sessions and challenges; raises `RateLimited`."""
    rate = ctx.settings.limit_code
    tries = await ctx.limits.reserve((Window(Limit.CODE.value, str(user_id), rate.tries_max, rate.window_s),))
    call.reply_headers.update(tries.headers)
    return tries


async def look_at(ctx: Context, factor: Factor, code: str | None, backup_code: str | None) -> Shown | None:
    """The code if it is right; nothing is used up. Backup codes cost one hash, so no transaction may be open."""
    if code is not None:
        step = factor.unused(_matching(ctx, factor, code))
        return None if step is None else Shown(factor_id=factor.id, wrong_codes=factor.wrong_codes, step=step)
    digits = backup_code_form(backup_code or "")
    if digits is None or factor.codes is None:
        return None
    [hashed] = await ctx.hasher.derive([digits], salt=factor.codes.salt, cost=factor.codes.cost)
    if not any([hmac.compare_digest(hashed, known) for known in factor.codes.hashes]):  # noqa: C419 - all are compared
        return None
    return Shown(factor_id=factor.id, wrong_codes=factor.wrong_codes, backup_hash=hashed)


def _matching(ctx: Context, factor: Factor, code: str) -> list[int]:
    digits = totp_form(code)
    if digits is None:
        return []
    secret = ctx.secrets.open(factor.user_id, factor.secret_sealed)
    return matching_steps(secret, digits, at=ctx.now(), window=ctx.settings.totp_window)


async def check_code(
    ctx: Context, call: Call, factor: Factor, *, code: str | None = None, backup_code: str | None = None
) -> Shown:
    """A signed-in caller's code, if it is right; raises `RateLimited`, or `WrongCode`, which is stored before."""
    require_may_try(ctx, factor)
    tries = await reserve_code(ctx, call, factor.user_id)
    try:
        shown = await look_at(ctx, factor, code, backup_code)
        if shown is None:
            await _refuse(ctx, call, factor)
    except (Stale, Overloaded, Unavailable, RateLimited):
        await give_back(ctx, call, tries)  # nothing was learnt of the code
        raise
    await give_back(ctx, call, tries)
    return shown


async def _refuse(ctx: Context, call: Call, factor: Factor) -> NoReturn:
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        refusal = await record_wrong_code(ctx, call, work, user, factor)
        await work.commit(refusal)
    raise refusal


async def use(work: UnitOfWork, user: User, shown: Shown, *, at: datetime) -> bool:
    """Use a code up under the user's lock, before the user is saved; False when it is good no more."""
    wrong_max = shown.wrong_codes
    if shown.step is not None:
        return await work.factors.use_step(user.id, shown.factor_id, shown.step, wrong_max=wrong_max)
    if shown.backup_hash is None:
        return False
    left = await work.factors.use_backup_code(user.id, shown.factor_id, shown.backup_hash, wrong_max=wrong_max)
    if left is None:
        return False
    user.use_backup_code(remaining=left, at=at)
    return True


async def record_wrong_code(ctx: Context, call: Call, work: UnitOfWork, user: User, factor: Factor) -> WrongCode:
    """Count a wrong code under the user's lock, and save the user.

    Raises `RateLimited` where it was not this device's turn, `Stale` where the factor is another by now.
    """
    at = ctx.now()
    now = await work.factors.get(user.id, device_hash=call.device_hash, at=at)
    if now is None or (now.id, now.is_on) != (factor.id, factor.is_on):
        raise Stale
    require_may_try(ctx, now)
    wrong_codes = await work.factors.count_wrong(user.id, at=at)
    user.refuse_code(
        wrong_codes=wrong_codes, mailed=ctx.settings.wrong_codes_mailed, origin=call.origin, at=at
    )  # fmt: skip
    await work.users.save(user)
    await work.audit(
        AuditRow(action="two_factor_refused", success=False, at=at, user_id=user.id, details={"subject": call.subject})
    )
    return WrongCode()
