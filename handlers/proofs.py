"""Whoever is signed in proves it once more, before an act that weighs: by the password, and by a code where the account
has a second factor. Wrong ones count like those of a sign-in."""

from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr

from adapters.addresses import email_key
from adapters.limits import Reservation
from adapters.two_factor import factor_of
from adapters.unit_of_work import UnitOfWork
from adapters.users import password_of
from domain.refusals import BadToken, Overloaded, PasswordDisowned, Stale, Unavailable, WrongCredentials
from domain.user import User
from handlers.callers import lock_caller
from handlers.codes import Shown, check_code, require_one, use
from handlers.context import Call, Context
from handlers.tries import give_back, record_refused, reserve_try


@dataclass(frozen=True, slots=True)
class Proof:
    """What was verified outside the lock; `accept` holds it against the row."""

    password_hash: str
    shown: Shown | None
    at: datetime

    @property
    def second_factor(self) -> bool:
        """Was a code shown beside the password?"""
        return self.shown is not None


async def prove(
    ctx: Context,
    call: Call,
    password: SecretStr,
    *,
    code: str | None = None,
    backup_code: str | None = None,
) -> Proof:
    """Check the caller's password, and a code where two-factor is on, before any transaction.

    Raises `RateLimited` or `AccountLocked`; or `WrongCredentials` and `WrongCode`, which are stored before they are
    answered; and, only after the right password, `InvalidInput` where a code is missing.
    """
    async with ctx.database.connection() as connection:
        seen = await password_of(connection, call.signed_in.user_id, device_hash=call.device_hash, at=ctx.now())
    if seen is None:
        raise BadToken
    tries = await reserve_try(
        ctx, call, email_key(seen.email), device_known=seen.device_known, unlocked=call.signed_in.user_id
    )
    try:
        matches = await ctx.hasher.verify(seen.password_hash, password.get_secret_value())
        if not matches:
            await _refuse(ctx, call, seen.password_hash, tries)
    except (Stale, Overloaded, Unavailable):
        await give_back(ctx, call, tries)  # nothing was learnt of the password
        raise
    await give_back(ctx, call, tries)
    at, shown = ctx.now(), None
    if seen.two_factor_enabled:
        shown = await _prove_code(ctx, call, code, backup_code)
    return Proof(seen.password_hash, shown, at)


async def _prove_code(ctx: Context, call: Call, code: str | None, backup_code: str | None) -> Shown:
    require_one(code, backup_code)
    async with ctx.database.connection() as connection:
        factor = await factor_of(connection, call.signed_in.user_id, device_hash=call.device_hash, at=ctx.now())
    if factor is None or not factor.is_on:
        raise Stale  # it was turned off since the password was read
    return await check_code(ctx, call, factor, code=code, backup_code=backup_code)


async def _refuse(ctx: Context, call: Call, seen_hash: str, tries: Reservation) -> None:
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        user.require_password_hash(seen_hash)
        refusal = WrongCredentials()
        await record_refused(ctx, call, work, user.email, user, refusal, tries=tries)
        await work.commit(refusal)
    raise refusal


async def accept(work: UnitOfWork, user: User, proof: Proof) -> None:
    """Under the user's lock, before the user is saved: the password is still the one that was shown, and the code is
    used up with the act. A code that has been used meanwhile is `Stale`: looked at again, it is refused and stored."""
    user.require_password_hash(proof.password_hash)
    if user.password_reset_required:  # somebody else may know it: it proves nothing any more
        raise PasswordDisowned
    if user.two_factor_enabled != proof.second_factor:
        raise Stale
    if proof.shown is not None and not await use(work, user, proof.shown, at=proof.at):
        raise Stale
