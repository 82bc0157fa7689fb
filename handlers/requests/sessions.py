"""The caller's sessions: shown, ended, made fresh; and disowned by whoever got the mail about one."""

from datetime import datetime
from uuid import UUID

from adapters.audit_log import AuditRow
from adapters.sessions import SESSIONS_MAX, sessions_of
from adapters.successors import seal_unseen
from adapters.tokens import hash_of
from adapters.unit_of_work import UnitOfWork
from contracts.sessions import (
    DisownSession,
    ListSessions,
    Reauthenticate,
    Reauthenticated,
    RevokeOtherSessions,
    RevokeSession,
    SessionPage,
    SessionsRevoked,
)
from contracts.users import Tokens
from contracts.wire import Empty, Pagination
from domain.refusals import BadToken, NotFound
from domain.session import Session
from domain.user import User
from handlers.callers import lock_caller
from handlers.context import Call, Context, Handlers
from handlers.mail_links import find_link, use_link
from handlers.proofs import accept, prove
from handlers.requests.tokens import issue_tokens


async def list_sessions(ctx: Context, call: Call, _: ListSessions) -> SessionPage:
    """Where the caller is signed in, on one page: there are no more than the cap."""
    caller, lifetimes = call.signed_in, ctx.settings.lifetimes
    async with ctx.database.connection() as connection:
        found = await sessions_of(
            connection, caller.user_id, lifetimes=lifetimes, at=ctx.now(), sessions_max=SESSIONS_MAX
        )
    shown = [session.model_copy(update={"current": session.id == caller.session_id}) for session in found]
    whole = Pagination(
        page=1, limit=SESSIONS_MAX, total=len(shown), total_pages=min(len(shown), 1), has_next=False, has_prev=False
    )
    return SessionPage(items=shown, pagination=whole)


async def revoke_session(ctx: Context, call: Call, request: RevokeSession) -> Empty:
    """End one of the caller's own."""
    at = ctx.now()
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        session = await work.sessions.get(request.session_id)
        if session is None or session.user_id != user.id or not session.is_live(at, ctx.settings.lifetimes):
            raise NotFound
        await work.end_sessions(user, only=[session.id], reason="revoked", at=at)
        await work.users.save(user)
        reply = Empty()
        await work.commit(reply)
    return reply


async def revoke_other_sessions(ctx: Context, call: Call, request: RevokeOtherSessions) -> SessionsRevoked:
    """End all of the caller's other sessions, or all there are."""
    kept = None if request.include_current else call.signed_in.session_id
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        ended = await work.end_sessions(user, reason="revoked", at=ctx.now(), but=kept)
        if ended:
            await work.users.save(user)
        reply = SessionsRevoked(revoked=len(ended))
        await work.commit(reply)
    return reply


async def reauthenticate(ctx: Context, call: Call, request: Reauthenticate) -> Reauthenticated:
    """Make the caller's session fresh, with new tokens in the place of those it had (ASVS 7.2.4).

    The refresh token from before is spent by that, as if it had been used for the new one: within the grace it still
    gets that, so neither a lost reply nor another tab signs anybody out.
    """
    proof = await prove(ctx, call, request.password, code=request.code, backup_code=request.backup_code)
    at = ctx.now()
    async with ctx.unit_of_work(call) as work:
        user = await lock_caller(ctx, work, call)
        await accept(work, user, proof)
        before = await work.sessions.get(call.signed_in.session_id)
        if before is None:
            raise BadToken
        session = before.proven_again(at, second_factor=proof.second_factor)
        tokens = await _renew(ctx, call, work, user, session, at=at)
        if user.recorded:
            await work.users.save(user)
        await work.audit(AuditRow(action="reauthenticated", success=True, at=at, user_id=user.id))
        reply = Reauthenticated(tokens=tokens)
        await work.commit(reply)
    return reply


async def _renew(ctx: Context, call: Call, work: UnitOfWork, user: User, session: Session, *, at: datetime) -> Tokens:
    lifetime = session.refresh_lifetime(at, ctx.settings.lifetimes)
    refresh_token = ctx.mint.refresh(user_id=user.id, session_id=session.id, at=at, lifetime=lifetime)
    await work.sessions.renew(
        session,
        used_by=call.device,
        successor_hash=hash_of(refresh_token),
        successor_sealed=seal_unseen(ctx.mint, refresh_token),
        expires_at=at + lifetime,
        at=at,
    )
    return issue_tokens(ctx, user, session, refresh_token, at=at, lifetime=lifetime)


async def disown_session(ctx: Context, call: Call, request: DisownSession) -> Empty:
    """It was somebody else: what they hold ends. Good once."""
    at = ctx.now()
    link = await find_link(ctx, request.token, "not-me")
    async with ctx.unit_of_work(call) as work:
        user = await work.users.lock(link.user_id)
        if user is None or user.status != "active" or user.email != link.address:
            raise BadToken
        await use_link(work, link, at=at)
        if link.session_id is None:
            if user.email_verified:
                raise BadToken  # its owner has verified it since: it is theirs
            await work.end_pending(user, by="user", at=at)
        else:
            await _disown(work, user, link.session_id, at=at)
        await work.audit(AuditRow(action="session_disowned", success=True, at=at, user_id=user.id))
        reply = Empty()
        await work.commit(reply)
    return reply


async def _disown(work: UnitOfWork, user: User, session_id: UUID, *, at: datetime) -> None:
    """That family ends and its device is known no more; whoever else has the password signs in no more by it."""
    await work.end_sessions(user, only=[session_id], reason="not_me", at=at)
    await work.sessions.forget_devices(session_id)
    await work.links.void(user.id, "email-change", at=at)
    user.disown_password(reason="not_me", at=at)
    if user.recorded:
        await work.users.save(user)


HANDLERS: Handlers = {
    ListSessions: list_sessions,
    RevokeSession: revoke_session,
    RevokeOtherSessions: revoke_other_sessions,
    Reauthenticate: reauthenticate,
    DisownSession: disown_session,
}
