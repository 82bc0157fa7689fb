"""What operators do to accounts; who may act on whom is decided in `handlers.authority`."""

from datetime import datetime
from uuid import UUID

import uuid_utils.compat as uuid_utils

from adapters.admins import require_another_admin
from adapters.audit_log import AuditRow
from adapters.links import Link
from adapters.unit_of_work import UnitOfWork
from adapters.users import user_view
from contracts.admin_users import (
    CreateUser,
    DeleteUser,
    PasswordResetDemanded,
    RequirePasswordReset,
    ResetTwoFactor,
    RevokeSessions,
    RoleUpdated,
    StatusUpdated,
    UnlockUser,
    UpdateRole,
    UpdateStatus,
    UserCreated,
    UserSessionsRevoked,
    UserUnlocked,
)
from contracts.wire import Empty
from domain.password import NO_PASSWORD
from domain.refusals import EmailTaken, Forbidden
from domain.user import User, UserId
from handlers.authority import acting_on, lock_giver, store_refusal
from handlers.context import Call, Context, Handlers
from handlers.tries import clear_tries


async def create_user(ctx: Context, call: Call, request: CreateUser) -> UserCreated:
    """Open an account by invitation: it has no password before its owner sets one by the mail's link."""
    at = ctx.now()
    user = User.register(
        UserId(uuid_utils.uuid7()),
        email=request.email,
        first_name=request.first_name,
        last_name=request.last_name,
        password_hash=NO_PASSWORD,
        at=at,
        origin="admin",
    )
    user.change_role(request.role, reason="invitation", at=at)
    expires_at = at + ctx.settings.lifetimes.invitation_link
    link = Link(id=uuid_utils.uuid7(), user_id=user.id, purpose="invitation", address=user.email, expires_at=expires_at)
    user.invite(token_id=link.id, expires_at=expires_at, at=at)
    reply = UserCreated(user=user_view(user))
    try:
        async with ctx.unit_of_work(call) as work:
            await lock_giver(ctx, work, call, request.role)
            if not await work.users.add(user):
                raise EmailTaken
            await work.links.open(link, at=at)
            await work.commit(reply)
    except (Forbidden, EmailTaken) as refusal:
        row = AuditRow(
            action="invitation_refused",
            success=False,
            at=at,
            details={"reason": refusal.code, "role": request.role},
            personal={"email": request.email},
        )
        await store_refusal(ctx, call, row, refusal)
        raise
    return reply


async def update_status(ctx: Context, call: Call, request: UpdateStatus) -> StatusUpdated:
    """Suspend an account, whose sessions end at once, or let it in again."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "status_change") as (work, user):
        if request.status == "suspended":
            await work.end_sessions(user, reason="suspended", at=at)
            await _leave_an_admin(work, user)
        user.change_status(request.status, reason=request.reason, at=at)
        await _save(work, user, "status_kept", request.reason, at=at)
        reply = StatusUpdated(user=user_view(user))
        await work.commit(reply)
    return reply


async def update_role(ctx: Context, call: Call, request: UpdateRole) -> RoleUpdated:
    """Give an account another role, at most the caller's own."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "role_change", gives=request.role) as (work, user):
        if request.role != "admin":
            await _leave_an_admin(work, user)
        user.change_role(request.role, reason=request.reason, at=at)
        await _save(work, user, "role_kept", request.reason, at=at)
        reply = RoleUpdated(user=user_view(user))
        await work.commit(reply)
    return reply


async def unlock_user(ctx: Context, call: Call, request: UnlockUser) -> UserUnlocked:
    """Let the owner try again, also where nothing is locked."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "unlock") as (work, user):
        user.unlock(reason=request.reason, at=at)
        await _save(work, user, "tries_cleared", request.reason, at=at)
        reply = UserUnlocked(user=user_view(user))
        await work.commit(reply)
    await clear_tries(ctx, user.email)
    return reply


async def require_password_reset(ctx: Context, call: Call, request: RequirePasswordReset) -> PasswordResetDemanded:
    """Disown a password: every session ends, and the next way in is the mail of a reset."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "reset_requirement") as (work, user):
        await work.end_sessions(user, reason="password_reset_required", at=at)
        await work.sessions.forget_all_devices(user.id)
        user.disown_password(reason=request.reason, at=at)
        await _save(work, user, "reset_requirement_kept", request.reason, at=at)
        reply = PasswordResetDemanded(user=user_view(user))
        await work.commit(reply)
    return reply


async def revoke_sessions(ctx: Context, call: Call, request: RevokeSessions) -> UserSessionsRevoked:
    """End all sessions of an account, and a sign-in that is half-way through."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "session_revocation") as (work, user):
        ended = await work.end_sessions(user, reason="revoked_by_admin", at=at)
        await work.users.save(user)
        await work.audit(_act_of("sessions_revoked", user.id, request.reason, at=at))
        reply = UserSessionsRevoked(revoked=len(ended))
        await work.commit(reply)
    return reply


async def reset_two_factor(ctx: Context, call: Call, request: ResetTwoFactor) -> Empty:
    """Turn off the second factor of an owner who has lost it."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "two_factor_reset") as (work, user):
        user.disable_two_factor(by="admin", at=at)
        await work.factors.wipe(user.id)
        await work.users.save(user)
        await work.audit(_act_of("two_factor_reset", user.id, request.reason, at=at))
        reply = Empty()
        await work.commit(reply)
    return reply


async def delete_user(ctx: Context, call: Call, request: DeleteUser) -> Empty:
    """End an account at once; its data is erased by a job, after the grace period."""
    at = ctx.now()
    async with acting_on(ctx, call, request.user_id, "deletion") as (work, user):
        await work.end_sessions(user, reason="account_deleted", at=at)
        await work.links.void_all_but(user.id, at=at)
        await _leave_an_admin(work, user)
        user.delete(by="admin", at=at)
        await work.users.save(user)
        await work.audit(_act_of("account_deleted", user.id, request.reason, at=at))
        reply = Empty()
        await work.commit(reply)
    return reply


async def _leave_an_admin(work: UnitOfWork, user: User) -> None:
    if user.role == "admin" and user.status == "active":
        await require_another_admin(work.connection, user.id)


async def _save(work: UnitOfWork, user: User, unchanged: str, reason: str, *, at: datetime) -> None:
    """Write what changed; an act that leaves no event is an audit row of its own."""
    if not user.recorded:
        await work.audit(_act_of(unchanged, user.id, reason, at=at))
    await work.users.save(user)


def _act_of(action: str, user_id: UUID, reason: str, *, at: datetime) -> AuditRow:
    """The reason goes under the user's key: operators write of people."""
    return AuditRow(
        action=action, success=True, at=at, user_id=user_id, resource_id=str(user_id), personal={"reason": reason}
    )


HANDLERS: Handlers = {
    CreateUser: create_user,
    UpdateStatus: update_status,
    UpdateRole: update_role,
    UnlockUser: unlock_user,
    RequirePasswordReset: require_password_reset,
    RevokeSessions: revoke_sessions,
    ResetTwoFactor: reset_two_factor,
    DeleteUser: delete_user,
}
