"""Sign-in: a password, and what it opens."""

from contextlib import suppress
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.addresses import email_key
from adapters.postgres import Connection
from adapters.sessions import NewSession
from adapters.tokens import hash_of, new_secret
from adapters.unit_of_work import UnitOfWork
from adapters.users import Candidate, candidate_of, user_view
from contracts.auth import LoggedIn, Login
from domain.refusals import Overloaded, Refusal, Stale, Unavailable, WrongCredentials
from domain.session import Session
from domain.user import User
from handlers.context import Call, Context, Handlers
from handlers.requests.tokens import issue_tokens
from handlers.tries import give_back, record_refused, reserve_try


async def login(ctx: Context, call: Call, request: Login) -> LoggedIn:
    """Sign in. A try is counted before the hash and given back when the password was right."""
    key = email_key(request.email)
    tries = await reserve_try(ctx, call, key)
    try:
        outcome, matches = await _check_and_sign_in(ctx, call, request, key)
    except (Stale, Overloaded, Unavailable):
        await give_back(ctx, call, tries)  # nothing was learnt of the password
        raise
    if matches:
        await give_back(ctx, call, tries)
    result = "success" if isinstance(outcome, LoggedIn) else "failure"
    ctx.metrics.authentications.labels(result, "password").inc()
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome


async def _check_and_sign_in(ctx: Context, call: Call, request: Login, key: str) -> tuple[LoggedIn | Refusal, bool]:
    """What comes of it, and whether the password was right."""
    password = request.password.get_secret_value()
    async with ctx.database.connection() as connection:
        seen = await _candidate(ctx, call, connection, key)
    matches = await ctx.hasher.verify(seen.user.password_hash if seen else None, password)
    upgraded = None
    if seen and matches and ctx.hasher.is_outdated(seen.user.password_hash):
        upgraded = await ctx.hasher.hash(password)
    if seen and _why_not(ctx, seen.user, matches=matches) is None:
        with suppress(Stale):  # else its row has changed while the password was checked
            alone = seen.device_known and not seen.sessions_past_cap
            async with ctx.unit_of_work(call, one_statement=alone) as work:
                return await _open_session(ctx, call, work, seen, upgraded, remember_me=request.remember_me), True
    return await _decide_under_lock(ctx, call, request, key, seen, matches=matches, upgraded=upgraded), matches


async def _candidate(ctx: Context, call: Call, connection: Connection, key: str) -> Candidate | None:
    device_hash = hash_of(call.device_token) if call.device_token else None
    cap = ctx.settings.session_cap
    return await candidate_of(connection, key, device_hash=device_hash, session_cap=cap, at=ctx.now())


async def _decide_under_lock(
    ctx: Context, call: Call, request: Login, key: str, seen: Candidate | None, *, matches: bool, upgraded: str | None
) -> LoggedIn | Refusal:
    """What was seen of the password is checked again under the lock; a refusal is stored as well."""
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(seen.user.id) if seen else None
        if user is not None and seen is not None:
            user.require_password_hash(seen.user.password_hash)
        refusal = _why_not(ctx, user, matches=matches)
        if user is not None and refusal is None:
            now = await _candidate(ctx, call, work.connection, key)
            if now is None or now.user.id != user.id:
                raise Stale  # the address has gone to another
            return await _open_session(ctx, call, work, now, upgraded, remember_me=request.remember_me)
        refusal = refusal or WrongCredentials()
        await record_refused(ctx, call, work, request.email, user, refusal)
        await work.commit(refusal)
    return refusal


def _why_not(ctx: Context, user: User | None, *, matches: bool) -> Refusal | None:
    """Only the holder of the right password is told more than that it was wrong."""
    if user is None or not matches:
        return WrongCredentials()
    try:
        user.require_may_sign_in(verified_email_required=ctx.settings.require_verified_email)
    except Refusal as refusal:
        return refusal
    return None


async def _open_session(
    ctx: Context, call: Call, work: UnitOfWork, seen: Candidate, upgraded: str | None, *, remember_me: bool
) -> LoggedIn:
    """Sign in whoever was seen; raises `Stale` when their row has changed since."""
    at, lifetimes, origin = ctx.now(), ctx.settings.lifetimes, call.origin
    lifetime = lifetimes.refresh_remembered if remember_me else lifetimes.refresh
    user = work.users.trust(seen)
    user.password_hash = upgraded or user.password_hash
    session = Session(
        id=uuid_utils.uuid7(),
        user_id=user.id,
        remember_me=remember_me,
        auth_time=at,
        amr=("pwd",),
        created_at=at,
        last_active_at=at,
        expires_at=at + lifetime,
        ended_at=None,
    )
    refresh_token = ctx.mint.refresh(user_id=user.id, session_id=session.id, at=at, lifetime=lifetime)
    user.sign_in(session_id=session.id, method="password", known_device=seen.device_known, origin=origin, at=at)
    await work.end_sessions(user, only=seen.sessions_past_cap, reason="session_cap", at=at)
    new = NewSession(
        session=session,
        token_hash=hash_of(refresh_token),
        device_info=origin.device_info,
        ip=call.client_ip,
        user_agent=call.user_agent,
    )
    await work.users.save(user, session=new)
    device_token = None if seen.device_known else await _recognise_device(ctx, work, user, session.id)
    tokens = issue_tokens(ctx, user, session, refresh_token, at=at, lifetime=lifetime, device_token=device_token)
    reply = LoggedIn(user=user_view(user), tokens=tokens)
    await work.commit(reply)
    return reply


async def _recognise_device(ctx: Context, work: UnitOfWork, user: User, session_id: UUID) -> str:
    """A token by which a new device will be known."""
    token = new_secret()
    lifetime = ctx.settings.lifetimes.device
    await work.sessions.add_device(user.id, hash_of(token), session_id=session_id, at=ctx.now(), lifetime=lifetime)
    return token


HANDLERS: Handlers = {Login: login}
