"""Registration, sign-in and tokens."""

from contextlib import suppress
from datetime import datetime
from uuid import UUID

import uuid_utils.compat as uuid_utils
from zxcvbn_rs_py import zxcvbn

from adapters.addresses import email_key
from adapters.audit_log import AuditRow
from adapters.limits import LimitReached, Window
from adapters.links import Link, link_by_token
from adapters.postgres import Connection
from adapters.sessions import NewSession
from adapters.settings import Rate, Settings
from adapters.tokens import hash_of, new_secret
from adapters.unit_of_work import UnitOfWork
from adapters.users import Candidate, candidate_of, owner_of, user_view
from contracts.auth import (
    EmailVerified,
    LoggedIn,
    Login,
    Register,
    Registered,
    ResendVerification,
    VerifyEmail,
)
from contracts.operations import Limit
from contracts.wire import Empty
from domain.password import COMPOSITION, NIST, own_words, require_acceptable
from domain.refusals import (
    BadToken,
    EmailTaken,
    ExpiredToken,
    Overloaded,
    Refusal,
    Stale,
    Unavailable,
    WrongCredentials,
)
from domain.session import Session
from domain.user import User, UserId
from handlers.context import Call, Context, Handlers
from handlers.requests.tokens import issue_tokens

VERIFICATION = "verification"
_GUESSES_LOG10_MIN = 5


async def register(ctx: Context, call: Call, request: Register) -> Registered:
    """Open an account and ask for its verification mail; a taken address is refused before the costly hash."""
    require_good_password(ctx.settings, request)
    async with ctx.database.connection() as connection:
        owner = await owner_of(connection, email_key(request.email))
    if owner is not None:
        async with ctx.unit_of_work(call) as work:
            raise await _taken(ctx, work, request, owner)
    password_hash = await ctx.hasher.hash(request.password.get_secret_value())

    at = ctx.now()
    user = User.register(
        UserId(uuid_utils.uuid7()),
        email=request.email,
        first_name=request.first_name,
        last_name=request.last_name,
        password_hash=password_hash,
        at=at,
        origin="registration",
    )
    link = _ask_for_verification(ctx, user, reason="registration", at=at)
    async with ctx.unit_of_work(call) as work:
        if not await work.users.add(user):
            raise await _taken(ctx, work, request)
        await work.links.open(link, at=at)
        reply = Registered(user=user_view(user))
        await work.commit(reply)
    ctx.metrics.registrations.inc()
    return reply


async def _taken(ctx: Context, work: UnitOfWork, request: Register, owner: UUID | None = None) -> EmailTaken:
    """The refusal is stored before it is answered; the address under its owner's key, so that it can be erased."""
    await work.audit(
        AuditRow(
            action="registration_refused",
            success=False,
            at=ctx.now(),
            user_id=owner,
            personal={"email": request.email},
        )
    )
    refusal = EmailTaken()
    await work.commit(refusal)
    return refusal


def require_good_password(settings: Settings, request: Register) -> None:
    """Raise `WeakPassword` with every rule of the policy in force that a new account's password breaks."""
    policy = COMPOSITION if settings.password_policy == "composition" else NIST  # noqa: S105 - a name
    words = own_words(request.email, request.first_name, request.last_name)
    require_acceptable(request.password.get_secret_value(), policy, own_words=words, is_common=is_common)


def is_common(password: str) -> bool:
    """Would an attacker with word lists and their usual twists be there within 100,000 guesses (zxcvbn)?"""
    return zxcvbn(password[:128]).guesses_log10 < _GUESSES_LOG10_MIN


def _ask_for_verification(ctx: Context, user: User, *, reason: str, at: datetime) -> Link:
    """Record the request; the mail's random token is made by the `email` group just before it sends."""
    expires_at = at + ctx.settings.lifetimes.verification_link
    link = Link(uuid_utils.uuid7(), user.id, VERIFICATION, user.email, expires_at, None)
    user.request_verification(token_id=link.id, expires_at=expires_at, reason=reason, at=at)
    return link


async def verify_email(ctx: Context, call: Call, request: VerifyEmail) -> EmailVerified:
    """Use up a verification link; it dies with a change of the address it was sent to."""
    at = ctx.now()
    async with ctx.database.connection() as connection:
        link = await link_by_token(connection, hash_of(request.token.get_secret_value()), VERIFICATION)
    if link is None:
        raise BadToken
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(link.user_id)
        if user is None or user.email != link.address:
            raise BadToken
        if not await work.links.use(link.id, at=at):
            raise BadToken if at < link.expires_at else ExpiredToken
        user.verify_email(reason="registration", at=at)
        await work.users.save(user)
        reply = EmailVerified(user=user_view(user))
        await work.commit(reply)
    return reply


async def resend_verification(ctx: Context, call: Call, request: ResendVerification) -> Empty:
    """Ask for another mail; known or not, verified or not, the answer and the rows written are alike."""
    at, key = ctx.now(), email_key(request.email)
    try:
        rates = ctx.settings
        await ctx.limits.reserve(
            _windows(ctx, call, Limit.MAIL, key, rates.limit_mail_address, rates.limit_mail_source)
        )
    except LimitReached:
        return Empty()
    async with ctx.database.connection() as connection:
        owner = await owner_of(connection, key)
    async with ctx.unit_of_work(call) as work:
        user = None if owner is None else await work.users.lock(owner)
        if user is not None and not user.email_verified:
            await work.links.open(_ask_for_verification(ctx, user, reason="resend", at=at), at=at)
            await work.users.save(user)
        await work.audit(
            AuditRow(
                action="verification_requested",
                success=True,
                at=at,
                user_id=user.id if user else None,
                personal={"email": request.email},
            )
        )
        reply = Empty()
        await work.commit(reply)
    return reply


def _windows(ctx: Context, call: Call, limit: Limit, who: str, by_who: Rate, by_source: Rate) -> tuple[Window, ...]:
    """Tries for an address from wherever, or from one source, and of a source over all addresses.

    All end users of a gateway that names no address share one source: it has a figure of its own.
    """
    rate = by_source if call.client_ip else ctx.settings.limit_bus_client
    return (
        Window(limit.value, who, by_who.tries_max, by_who.window_s),
        Window(f"{limit.value}:source", call.source, rate.tries_max, rate.window_s),
    )


async def login(ctx: Context, call: Call, request: Login) -> LoggedIn:
    """Sign in. A try is counted before the hash and given back when the password was right."""
    key = email_key(request.email)
    pair, rates = f"{key}:{call.source}", ctx.settings  # so nobody locks a stranger out
    tries = await ctx.limits.reserve(
        _windows(ctx, call, Limit.LOGIN, pair, rates.limit_login, rates.limit_login_source)
    )
    call.reply_headers.update(tries.headers)
    try:
        outcome, matches = await _check_and_sign_in(ctx, call, request, key)
    except (Stale, Overloaded, Unavailable):
        await ctx.limits.give_back(tries)  # nothing was learnt of the password
        raise
    if matches:
        await ctx.limits.give_back(tries)
        call.reply_headers.update(tries.given_back().headers)
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
        await _record_refusal(ctx, call, work, request, user, refusal)
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


async def _record_refusal(
    ctx: Context, call: Call, work: UnitOfWork, request: Login, user: User | None, refusal: Refusal
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
            personal={"email": request.email},
        )
    )


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
    for past_cap in seen.sessions_past_cap:
        user.session_revoked(past_cap, reason="session_cap", at=at)
    new = NewSession(
        session=session,
        token_hash=hash_of(refresh_token),
        device_info=origin.device_info,
        ip=call.client_ip,
        user_agent=call.user_agent,
    )
    await work.users.save(user, session=new)
    await work.sessions.end(seen.sessions_past_cap, reason="session_cap", at=at)
    device_token = None if seen.device_known else await _recognise_device(ctx, work, user)
    tokens = issue_tokens(ctx, user, session, refresh_token, at=at, lifetime=lifetime, device_token=device_token)
    reply = LoggedIn(user=user_view(user), tokens=tokens)
    await work.commit(reply)
    return reply


async def _recognise_device(ctx: Context, work: UnitOfWork, user: User) -> str:
    """A token by which a new device will be known."""
    token = new_secret()
    lifetime = ctx.settings.lifetimes.device
    await work.sessions.add_device(user.id, hash_of(token), at=ctx.now(), lifetime=lifetime)
    return token


HANDLERS: Handlers = {
    Register: register,
    VerifyEmail: verify_email,
    ResendVerification: resend_verification,
    Login: login,
}
