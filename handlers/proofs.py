"""Whoever is signed in proves it once more, before an act that weighs: by the password, and by a code where the account
has a second factor. Wrong ones count like those of a sign-in."""

from dataclasses import dataclass

from pydantic import SecretStr

from adapters.addresses import email_key
from adapters.unit_of_work import UnitOfWork
from adapters.users import password_of
from domain.refusals import BadToken, Overloaded, Stale, Unavailable, WrongCredentials
from domain.user import User
from handlers.callers import lock_caller
from handlers.context import Call, Context
from handlers.tries import give_back, record_refused, reserve_try


@dataclass(frozen=True, slots=True)
class Proof:
    """What was verified outside the lock; `accept` holds it against the row."""

    password_hash: str


async def prove(
    ctx: Context,
    call: Call,
    password: SecretStr,
    *,
    code: str | None = None,  # noqa: ARG001 - no account has a second factor yet
    backup_code: str | None = None,  # noqa: ARG001
) -> Proof:
    """Check the caller's password, and a code where two-factor is on, before any transaction.

    Raises `RateLimited`, or `WrongCredentials` and `WrongCode`, which are stored before they are answered.
    """
    async with ctx.database.connection() as connection:
        seen = await password_of(connection, call.signed_in.user_id)
    if seen is None:
        raise BadToken
    tries = await reserve_try(ctx, call, email_key(seen.email))
    try:
        matches = await ctx.hasher.verify(seen.password_hash, password.get_secret_value())
        if not matches:
            await _refuse(ctx, call, seen.password_hash)
    except (Stale, Overloaded, Unavailable):
        await give_back(ctx, call, tries)  # nothing was learnt of the password
        raise
    await give_back(ctx, call, tries)
    return Proof(seen.password_hash)


async def _refuse(ctx: Context, call: Call, seen_hash: str) -> None:
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        user.require_password_hash(seen_hash)
        refusal = WrongCredentials()
        await record_refused(ctx, call, work, user.email, user, refusal)
        await work.commit(refusal)
    raise refusal


async def accept(work: UnitOfWork, user: User, proof: Proof) -> None:  # noqa: ARG001
    """Under the user's lock: the password is still the one that was shown, and a code is used up with the act."""
    user.require_password_hash(proof.password_hash)
