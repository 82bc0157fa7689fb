"""What operators do to accounts: `users.v1.admin.users.*` that write."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, StringConstraints

from contracts.operations import Operation, Permission
from contracts.users import Role, User
from contracts.wire import Broken, Email, Empty, PersonName, Text, Wire


def _not_blank(text: str) -> str:
    if not text.strip():
        raise Broken("wrong_length", "Use 1 to 500 characters.")
    return text.strip()


Reason = Annotated[Text, StringConstraints(min_length=1, max_length=500), AfterValidator(_not_blank)]
"""Why an operator acts: kept in the audit log."""

CAME_WITH_ACCOUNT = frozenset({"import", "invitation", "made by an operator"})
"""What `UserRoleChanged` gives as its reason where the role came with the account: nobody is mailed of it."""


def _of_an_operator(reason: str) -> str:
    if reason in CAME_WITH_ACCOUNT:
        raise Broken("reserved", "Say it in other words: these would keep the mails of the change back.")
    return reason


class CreateUser(Wire):
    """Open an account for somebody, who sets the password by the link of an invitation mail."""

    email: Email
    first_name: PersonName
    last_name: PersonName
    role: Role = "user"


class UserCreated(Wire):
    user: User


class UpdateStatus(Wire):
    """Suspend an account, which ends its sessions, or let it in again."""

    user_id: UUID
    status: Literal["active", "suspended"]
    reason: Reason


class StatusUpdated(Wire):
    user: User


class UpdateRole(Wire):
    """Give an account another role; it counts at once, whatever its tokens say."""

    user_id: UUID
    role: Role
    reason: Annotated[Reason, AfterValidator(_of_an_operator)] = "changed by an admin"


class RoleUpdated(Wire):
    user: User


class UnlockUser(Wire):
    """Take the lock off an account, and forget its failed tries."""

    user_id: UUID
    reason: Reason


class UserUnlocked(Wire):
    user: User


class RequirePasswordReset(Wire):
    """Disown a password, which ends all sessions: nobody signs in before it is reset by mail."""

    user_id: UUID
    reason: Reason


class PasswordResetDemanded(Wire):
    user: User


class RevokeSessions(Wire):
    """End all sessions of an account."""

    user_id: UUID
    reason: Reason


class UserSessionsRevoked(Wire):
    """How many were ended."""

    revoked: int


class ResetTwoFactor(Wire):
    """Turn off the second factor of an owner who has lost it; the owner and all admins are told by mail."""

    user_id: UUID
    reason: Reason


class DeleteUser(Wire):
    """End an account at once; its data is erased after the grace period."""

    user_id: UUID
    reason: Reason


OPERATIONS = (
    Operation(
        "users.v1.admin.users.create",
        CreateUser,
        UserCreated,
        "POST /admin/users",
        caller=Permission.USERS_WRITE,
        fresh=True,
        writes=True,
        emits=("UserRegistered", "UserRoleChanged", "UserInvited"),
        audits=("invitation_refused",),
    ),
    Operation(
        "users.v1.admin.users.update-status",
        UpdateStatus,
        StatusUpdated,
        "PUT /admin/users/:id/status",
        caller=Permission.USERS_WRITE,
        fresh=True,
        writes=True,
        emits=("UserStatusChanged", "SessionRevoked"),
        audits=("status_kept", "status_change_refused"),
    ),
    Operation(
        "users.v1.admin.users.update-role",
        UpdateRole,
        RoleUpdated,
        "PUT /admin/users/:id/role",
        caller=Permission.ROLES_WRITE,
        fresh=True,
        writes=True,
        emits=("UserRoleChanged",),
        audits=("role_kept", "role_change_refused"),
    ),
    Operation(
        "users.v1.admin.users.unlock",
        UnlockUser,
        UserUnlocked,
        "POST /admin/users/:id/unlock",
        caller=Permission.USERS_WRITE,
        writes=True,
        emits=("AccountUnlocked",),
        audits=("tries_cleared", "unlock_refused"),
    ),
    Operation(
        "users.v1.admin.users.require-password-reset",
        RequirePasswordReset,
        PasswordResetDemanded,
        "POST /admin/users/:id/require-password-reset",
        caller=Permission.USERS_WRITE,
        writes=True,
        emits=("PasswordResetRequired", "SessionRevoked"),
        audits=("reset_requirement_kept", "reset_requirement_refused"),
    ),
    Operation(
        "users.v1.admin.users.revoke-sessions",
        RevokeSessions,
        UserSessionsRevoked,
        "POST /admin/users/:id/revoke-sessions",
        caller=Permission.USERS_WRITE,
        writes=True,
        emits=("SessionRevoked",),
        audits=("sessions_revoked", "session_revocation_refused"),
    ),
    Operation(
        "users.v1.admin.users.reset-two-factor",
        ResetTwoFactor,
        Empty,
        "DELETE /admin/users/:id/2fa",
        caller=Permission.USERS_WRITE,
        fresh=True,
        writes=True,
        emits=("TwoFactorDisabled",),
        audits=("two_factor_reset", "two_factor_reset_refused"),
    ),
    Operation(
        "users.v1.admin.users.delete",
        DeleteUser,
        Empty,
        "DELETE /admin/users/:id",
        caller=Permission.USERS_WRITE,
        fresh=True,
        writes=True,
        emits=("UserDeleted", "SessionRevoked"),
        audits=("account_deleted", "deletion_refused"),
    ),
)
