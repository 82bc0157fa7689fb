"""The second step of a sign-in: a code, for whoever has shown the right password."""

import hmac
from dataclasses import replace

from adapters.addresses import email_key
from adapters.tokens import hash_of
from adapters.two_factor import challenge_of, factor_of, mark_of
from adapters.unit_of_work import UnitOfWork
from adapters.users import Candidate, user_view
from contracts.auth import SecondFactorShown, ShowSecondFactor
from domain.refusals import (
    BadToken,
    ExpiredToken,
    Overloaded,
    RateLimited,
    Refusal,
    Stale,
    Unavailable,
    WrongCode,
)
from domain.two_factor import Challenge, Factor
from domain.user import User
from handlers.codes import Shown, look_at, record_wrong_code, require_may_try, require_one, reserve_code, use
from handlers.context import Call, Context, Handlers
from handlers.requests.sign_in import candidate, open_session
from handlers.tries import forgive, give_back, record_refused


async def show_second_factor(ctx: Context, call: Call, request: ShowSecondFactor) -> SecondFactorShown:
    """Finish a sign-in. A try is counted for the account before the code is looked at, and given back when it was
    right; the challenge is spent by success or by a few wrong codes."""
    require_one(request.code, request.backup_code)
    token_hash = hash_of(request.challenge_token.get_secret_value())
    factor = await _challenged(ctx, call, token_hash)
    require_may_try(ctx, factor)
    tries = await reserve_code(ctx, call, factor.user_id)
    try:
        shown = await look_at(ctx, factor, request.code, request.backup_code)
        outcome = await _decide_under_lock(ctx, call, token_hash, factor, shown)
    except (Stale, Overloaded, Unavailable, RateLimited, BadToken, ExpiredToken):
        await give_back(ctx, call, tries)  # nothing was learnt of the code
        raise
    if isinstance(outcome, SecondFactorShown):
        await forgive(ctx, call, tries, email_key(outcome.user.email), device_known=factor.device_known)
    elif not isinstance(outcome, WrongCode):
        await give_back(ctx, call, tries)
    result = "failure" if isinstance(outcome, Refusal) else "success"
    method = "totp" if request.code is not None else "backup-code"
    ctx.metrics.authentications.labels(result, f"password+{method}").inc()
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome


async def _challenged(ctx: Context, call: Call, token_hash: bytes) -> Factor:
    """The factor that an open challenge asks for."""
    at = ctx.now()
    async with ctx.database.connection() as connection:
        challenge = await challenge_of(connection, token_hash)
        if challenge is None:
            raise BadToken
        challenge.require_open(at)
        factor = await factor_of(connection, challenge.user_id, device_hash=call.device_hash, at=at)
    if factor is None or not factor.is_on:
        raise BadToken
    return factor


async def _lock(
    ctx: Context, call: Call, work: UnitOfWork, token_hash: bytes, factor: Factor
) -> tuple[Challenge, Candidate]:
    """The challenge, still open, and whose it is, under their lock; another password or factor ends it."""
    user = await work.users.lock(factor.user_id)
    challenge = await work.factors.challenge(token_hash)
    if user is None or user.status != "active" or not user.two_factor_enabled or challenge is None:
        raise BadToken
    if not hmac.compare_digest(challenge.password_mark, mark_of(user.password_hash)):
        raise BadToken
    challenge.require_open(ctx.now())
    seen = await candidate(ctx, call, work.connection, email_key(user.email))
    if seen is None or seen.user.id != user.id:
        raise BadToken
    return challenge, seen


async def _decide_under_lock(
    ctx: Context, call: Call, token_hash: bytes, factor: Factor, shown: Shown | None
) -> SecondFactorShown | Refusal:
    """Whatever came at the same time is counted by now; a refusal is stored before it is answered."""
    at = ctx.now()
    async with ctx.unit_of_work(call) as work:
        challenge, seen = await _lock(ctx, call, work, token_hash, factor)
        user = work.users.trust(seen)
        now = await work.factors.get(user.id, device_hash=call.device_hash, at=at)
        if now is None or now.id != factor.id:
            raise BadToken
        require_may_try(ctx, now)
        if shown is None or not await use(work, user, replace(shown, wrong_codes=now.wrong_codes), at=at):
            wrong = await record_wrong_code(ctx, call, work, user, factor)
            await work.factors.count_wrong_at(token_hash)
            await work.commit(wrong)
            return wrong
        await work.factors.spend_challenge(token_hash, at=at)
        refusal = _why_not(ctx, user)
        if refusal is not None:
            await work.users.save(user)
            await record_refused(ctx, call, work, user.email, user, refusal)
            await work.commit(refusal)
            return refusal
        method = f"password+{shown.method}"
        tokens = await open_session(ctx, call, work, seen, method=method, remember_me=challenge.remember_me)
        reply = SecondFactorShown(user=user_view(user), tokens=tokens)
        await work.commit(reply)
    return reply


def _why_not(ctx: Context, user: User) -> Refusal | None:
    """What is told only after every factor was right."""
    try:
        user.require_current_password(ctx.passwords.policy.age_max, at=ctx.now())
    except Refusal as refusal:
        return refusal
    return None


HANDLERS: Handlers = {ShowSecondFactor: show_second_factor}
