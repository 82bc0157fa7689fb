"""Sign-in: a password, and what it opens."""

from contextlib import suppress
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.addresses import email_key
from adapters.audit_log import AuditRow
from adapters.limits import Reservation
from adapters.postgres import Connection
from adapters.sessions import NewSession
from adapters.tokens import hash_of, new_secret
from adapters.two_factor import mark_of
from adapters.unit_of_work import UnitOfWork
from adapters.users import Candidate, candidate_of, user_view
from contracts.auth import LoggedIn, Login
from contracts.users import Tokens
from domain.refusals import Overloaded, Refusal, Stale, Unavailable, WrongCredentials
from domain.session import Session
from domain.two_factor import Challenge
from domain.user import User
from handlers.context import Call, Context, Handlers
from handlers.requests.tokens import issue_tokens, not_me_link
from handlers.tries import forgive, give_back, record_refused, reserve_try


async def login(ctx: Context, call: Call, request: Login) -> LoggedIn:
    """Sign in. A try is counted before the hash and given back when the password was right. Who it may be is read
    before: a device that is known has tries of its own."""
    async with ctx.database.connection() as connection:
        seen = await candidate(ctx, call, connection, email_key(request.email))
    device_known = seen is not None and seen.device_known
    unlocked = None if seen is None or seen.user.is_locked(ctx.now()) else seen.user.id
    tries = await reserve_try(ctx, call, email_key(request.email), device_known=device_known, unlocked=unlocked)
    try:
        outcome, matches = await _check_and_sign_in(ctx, call, request, seen, tries)
    except (Stale, Overloaded, Unavailable):
        await give_back(ctx, call, tries)  # nothing was learnt of the password
        raise
    if isinstance(outcome, LoggedIn) and not outcome.two_factor_required:
        await forgive(ctx, call, tries, email_key(request.email), device_known=device_known)
    elif matches:
        await give_back(ctx, call, tries)
    ctx.metrics.authentications.labels(_result(outcome), "password").inc()
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome


def _result(outcome: LoggedIn | Refusal) -> str:
    if isinstance(outcome, Refusal):
        return "failure"
    return "challenge" if outcome.two_factor_required else "success"


async def _check_and_sign_in(
    ctx: Context, call: Call, request: Login, seen: Candidate | None, tries: Reservation
) -> tuple[LoggedIn | Refusal, bool]:
    """What comes of it, and whether the password was right; of an account that is hidden it never is."""
    password = request.password.get_secret_value()
    matches = await ctx.hasher.verify(seen.user.password_hash if seen else None, password)
    if seen is not None and ctx.hides(seen.user):
        matches = False
    upgraded = None
    if seen and matches and ctx.hasher.is_outdated(seen.user.password_hash):
        upgraded = await ctx.hasher.hash(password)
    if seen and not seen.user.two_factor_enabled and _why_not(ctx, seen.user, matches=matches) is None:
        with suppress(Stale):  # else its row has changed while the password was checked
            alone = seen.device_known and not seen.sessions_past_cap
            async with ctx.unit_of_work(call, one_statement=alone) as work:
                return await _log_in(ctx, call, work, seen, upgraded, remember_me=request.remember_me), True
    outcome = await _decide_under_lock(ctx, call, request, seen, tries, matches=matches, upgraded=upgraded)
    return outcome, matches


async def candidate(ctx: Context, call: Call, connection: Connection, key: str) -> Candidate | None:
    """Who may be about to sign in by this address, with this call's device."""
    settings = ctx.settings
    return await candidate_of(
        connection, key, device_hash=call.device_hash, session_cap=settings.session_cap,
        idle=settings.lifetimes.idle, at=ctx.now(),
    )  # fmt: skip


async def _decide_under_lock(
    ctx: Context,
    call: Call,
    request: Login,
    seen: Candidate | None,
    tries: Reservation,
    *,
    matches: bool,
    upgraded: str | None,
) -> LoggedIn | Refusal:
    """What was seen of the password is checked again under the lock; a refusal is stored as well."""
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(seen.user.id) if seen else None
        if user is not None and seen is not None:
            user.require_password_hash(seen.user.password_hash)
        refusal = _why_not(ctx, user, matches=matches)
        if user is not None and refusal is None:
            if user.two_factor_enabled:
                return await _challenge(ctx, call, work, user, upgraded, remember_me=request.remember_me)
            now = await candidate(ctx, call, work.connection, email_key(request.email))
            if now is None or now.user.id != user.id:
                raise Stale  # the address has gone to another
            return await _log_in(ctx, call, work, now, upgraded, remember_me=request.remember_me)
        refusal = refusal or WrongCredentials()
        await record_refused(ctx, call, work, request.email, user, refusal, tries=tries)
        await work.commit(refusal)
    return refusal


def _why_not(ctx: Context, user: User | None, *, matches: bool) -> Refusal | None:
    """Only the holder of the right password is told more than that it was wrong."""
    if user is None or not matches:
        return WrongCredentials()
    try:
        user.require_may_sign_in(verified_email_required=ctx.settings.require_verified_email)
        if not user.two_factor_enabled:
            user.require_current_password(ctx.passwords.policy.age_max, at=ctx.now())
    except Refusal as refusal:
        return refusal
    return None


async def _log_in(
    ctx: Context, call: Call, work: UnitOfWork, seen: Candidate, upgraded: str | None, *, remember_me: bool
) -> LoggedIn:
    """Sign in by the password alone."""
    user = work.users.trust(seen)
    user.password_hash = upgraded or user.password_hash
    tokens = await open_session(ctx, call, work, seen, method="password", remember_me=remember_me)
    reply = LoggedIn(user=user_view(user), tokens=tokens)
    await work.commit(reply)
    return reply


async def _challenge(
    ctx: Context, call: Call, work: UnitOfWork, user: User, upgraded: str | None, *, remember_me: bool
) -> LoggedIn:
    """The password was right, and a code is still due: neither session nor counter know of it before that."""
    at, token, lifetime = ctx.now(), new_secret(), ctx.settings.lifetimes.challenge
    if upgraded is not None:
        user.password_hash = upgraded
        await work.users.save(user)
    await work.factors.open_challenge(
        Challenge(
            hash=hash_of(token),
            user_id=user.id,
            password_mark=mark_of(user.password_hash),
            remember_me=remember_me,
            expires_at=at + lifetime,
        ),
        at=at,
    )
    await work.audit(AuditRow(action="two_factor_challenged", success=True, at=at, user_id=user.id))
    factor = await work.factors.get(user.id, device_hash=call.device_hash, at=at)
    reply = LoggedIn(
        two_factor_required=True,
        challenge_token=token,
        expires_in=int(lifetime.total_seconds()),
        methods=factor.methods if factor else [],
    )
    await work.commit(reply)
    return reply


async def open_session(
    ctx: Context, call: Call, work: UnitOfWork, seen: Candidate, *, method: str, remember_me: bool
) -> Tokens:
    """Sign in whoever was seen and is trusted, and save them; raises `Stale` when their row has changed since.

    A backup code is a one-time password as well (RFC 8176), so either second factor stands as `otp` in `amr`.
    """
    user, at, lifetimes, origin = seen.user, ctx.now(), ctx.settings.lifetimes, call.origin
    lifetime = lifetimes.refresh_remembered if remember_me else lifetimes.refresh
    session = Session(
        id=uuid_utils.uuid7(),
        user_id=user.id,
        remember_me=remember_me,
        auth_time=at,
        amr=("pwd",) if method == "password" else ("pwd", "otp"),
        created_at=at,
        last_active_at=at,
        expires_at=at + lifetime,
        ended_at=None,
    )
    refresh_token = ctx.mint.refresh(user_id=user.id, session_id=session.id, at=at, lifetime=lifetime)
    not_me = not_me_link(ctx, user, session.id) if user.is_new(known_device=seen.device_known) else None
    user.sign_in(
        session_id=session.id,
        method=method,
        known_device=seen.device_known,
        token_id=None if not_me is None else not_me.id,
        origin=origin,
        at=at,
    )
    await work.end_sessions(user, only=seen.sessions_past_cap, reason="session_cap", at=at)
    new = NewSession(
        session=session,
        token_hash=hash_of(refresh_token),
        device_info=origin.device_info,
        ip=call.client_ip,
        user_agent=call.user_agent,
    )
    await work.users.save(user, session=new)
    if not_me is not None:
        await work.links.open(not_me, at=at)
    device_token = None if seen.device_known else await _recognise_device(ctx, work, user, session.id)
    return issue_tokens(ctx, user, session, refresh_token, at=at, lifetime=lifetime, device_token=device_token)


async def _recognise_device(ctx: Context, work: UnitOfWork, user: User, session_id: UUID) -> str:
    """A token by which a new device will be known."""
    token = new_secret()
    lifetime = ctx.settings.lifetimes.device
    await work.sessions.add_device(user.id, hash_of(token), session_id=session_id, at=ctx.now(), lifetime=lifetime)
    return token


HANDLERS: Handlers = {Login: login}
