"""What becomes of tokens: refreshed, given up, asked about."""

from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.audit_log import AuditRow
from adapters.links import Link
from adapters.successors import open_successor, seal_successor
from adapters.tokens import hash_of
from adapters.unit_of_work import UnitOfWork
from contracts.auth import Jwks, KeySet, Logout, Refresh, Refreshed, TokenVerdict, VerifyToken
from contracts.users import Tokens
from contracts.wire import Empty
from domain.permissions import PERMISSIONS
from domain.refusals import BadToken, ExpiredToken, NoCaller
from domain.session import Session, Use, judge
from domain.user import LOGOUT, User
from handlers.callers import standing
from handlers.context import Call, Context, Handlers


async def refresh(ctx: Context, call: Call, request: Refresh) -> Refreshed:
    """Spend a refresh token, or give its successor again within the grace; any other second use ends the family."""
    token = request.refresh_token.get_secret_value()
    claims = ctx.mint.read_refresh(token)
    at = ctx.now()
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(claims.user_id)
        session = await work.sessions.get(claims.session_id)
        known = await work.sessions.token(claims.hash)
        if user is None or user.status != "active" or session is None or known is None:
            raise BadToken
        match judge(known.token, session, device=call.device, at=known.at, lifetimes=ctx.settings.lifetimes):
            case Use.SPEND:
                reply = await _spend(ctx, call, work, user, session, token, spent_at=known.at)
            case Use.GIVE_AGAIN if known.successor_sealed is not None:
                successor = open_successor(ctx.mint, token, known.successor_sealed)
                left = session.expires_at - at
                await work.audit(AuditRow(action="refresh_replayed", success=True, at=at, user_id=user.id))
                reply = Refreshed(tokens=issue_tokens(ctx, user, session, successor, at=at, lifetime=left))
            case Use.GIVE_AGAIN | Use.END_FAMILY:
                await _end_family(ctx, call, work, user, session, at=at)
                await work.commit(BadToken())  # the end of the family is stored, although the request fails
                raise BadToken
            case Use.REFUSE:
                raise BadToken
            case unreachable:
                assert_never(unreachable)
        await work.commit(reply)
    return reply


async def _spend(
    ctx: Context, call: Call, work: UnitOfWork, user: User, session: Session, token: str, *, spent_at: datetime
) -> Refreshed:
    at = ctx.now()
    lifetime = session.refresh_lifetime(at, ctx.settings.lifetimes)
    successor = ctx.mint.refresh(user_id=user.id, session_id=session.id, at=at, lifetime=lifetime)
    await work.sessions.spend(
        session.id,
        hash_of(token),
        used_by=call.device,
        successor_hash=hash_of(successor),
        successor_sealed=seal_successor(token, successor),
        expires_at=at + lifetime,
        at=spent_at,
    )
    return Refreshed(tokens=issue_tokens(ctx, user, session, successor, at=at, lifetime=lifetime))


async def _end_family(
    ctx: Context, call: Call, work: UnitOfWork, user: User, session: Session, *, at: datetime
) -> None:
    """Somebody else has the token too: nobody may go on with it, and its owner may disown what they did."""
    link = not_me_link(ctx, user, session.id)
    await work.links.open(link, at=at)
    user.refresh_token_reused(session.id, token_id=link.id, expires_at=link.expires_at, origin=call.origin, at=at)
    await work.end_sessions(user, only=[session.id], reason="refresh_token_reused", at=at)
    await work.users.save(user)


def not_me_link(ctx: Context, user: User, session_id: UUID | None) -> Link:
    """By which the owner of the address disowns a session, or an account that somebody opened with it."""
    return Link(
        id=uuid_utils.uuid7(),
        user_id=user.id,
        purpose="not-me",
        address=user.email,
        expires_at=ctx.now() + ctx.settings.lifetimes.not_me_link,
        session_id=session_id,
    )


def issue_tokens(
    ctx: Context, user: User, session: Session, refresh_token: str, *, at: datetime, lifetime: timedelta,
    device_token: str | None = None,
) -> Tokens:  # fmt: skip
    """A fresh access token beside a refresh token that lives `lifetime`."""
    lives = ctx.settings.lifetimes.access
    access = ctx.mint.access(
        user_id=user.id,
        email=user.email,
        role=user.role,
        session_id=session.id,
        auth_time=session.auth_time,
        amr=session.amr,
        at=at,
        lifetime=lives,
    )
    return Tokens(
        access_token=access,
        refresh_token=refresh_token,
        device_token=device_token,
        expires_in=int(lives.total_seconds()),
        refresh_expires_in=int(lifetime.total_seconds()),
    )


async def logout(ctx: Context, call: Call, request: Logout) -> Empty:
    """End the session of the access token, or that of a refresh token in the body."""
    at = ctx.now()
    if call.caller is not None:
        user_id, session_id, token_hash = call.caller.user_id, call.caller.session_id, None
    elif request.refresh_token is not None:
        claims = ctx.mint.read_refresh(request.refresh_token.get_secret_value())
        user_id, session_id, token_hash = claims.user_id, claims.session_id, claims.hash
    else:
        raise NoCaller
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(user_id)
        if user is None or (token_hash is not None and await work.sessions.token(token_hash) is None):
            raise BadToken
        if not await work.end_sessions(user, only=[session_id], reason=LOGOUT, at=at):
            raise BadToken
        await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    return reply


async def verify_token(ctx: Context, _: Call, request: VerifyToken) -> TokenVerdict:
    """The claims of a live access token; of anything else that it is not one."""
    try:
        claims = ctx.mint.read_access(request.token.get_secret_value(), at=ctx.now())
    except (BadToken, ExpiredToken):
        return TokenVerdict(active=False)
    stands = await standing(ctx, claims)
    if stands is None:
        return TokenVerdict(active=False)
    now = {"role": stands.role, "permissions": sorted(PERMISSIONS[stands.role])}  # the token may be older than these
    return TokenVerdict.model_validate({"active": True, "claims": claims.raw | now})


async def jwks(ctx: Context, _: Call, __: Jwks) -> KeySet:
    """The public keys that access tokens are signed with."""
    return KeySet(keys=ctx.mint.jwks)


HANDLERS: Handlers = {Refresh: refresh, Logout: logout, VerifyToken: verify_token, Jwks: jwks}
