"""What an operator may do to an account: each act with what it is called, what will happen, and who may do it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.operations import Permission
from domain.permissions import Act as Deed
from domain.permissions import may_act
from handlers.console.sessions import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One button of a user's page."""

    name: str
    """In the address."""
    title: str
    happens: str
    done: str
    operation: str
    deed: Deed
    permission: Permission = Permission.USERS_WRITE
    status: str | None = None
    """Sent along, where the operation changes the status."""
    gives_role: bool = False
    is_grave: bool = False

    def is_open_to(self, session: Session, user: Mapping[str, Any]) -> bool:
        """May they do this to that account, and is there anything to do? The service has the last word."""
        oneself = session.user_id == user["id"]
        allowed = session.may(self.permission.value) and may_act(
            self.deed, session.role, user["role"], on_oneself=oneself
        )
        return allowed and user["status"] != "deleted" and self._is_of_use(user)

    def _is_of_use(self, user: Mapping[str, Any]) -> bool:
        if self.status is not None:
            return bool(user["status"] != self.status)
        return self.deed != "two_factor_reset" or bool(user["twoFactorEnabled"])


ACTS: dict[str, Act] = {
    act.name: act
    for act in (
        Act(
            name="unlock",
            title="Unlock",
            happens="The lock and all failed tries are forgotten. Nobody is mailed.",
            done="The account is unlocked.",
            operation="admin.users.unlock",
            deed="unlock",
        ),
        Act(
            name="revoke-sessions",
            title="Sign out everywhere",
            happens="All sessions end within a second. The owner can sign in again with the same password.",
            done="All sessions were ended.",
            operation="admin.users.revoke-sessions",
            deed="session_revocation",
        ),
        Act(
            name="require-password-reset",
            title="Require a new password",
            happens="The password counts no more and all sessions end. The owner gets in by “forgot password” alone, "
            "with a link that is mailed then.",
            done="The password must be reset before the next sign-in.",
            operation="admin.users.require-password-reset",
            deed="reset_requirement",
        ),
        Act(
            name="reset-two-factor",
            title="Turn off the second factor",
            happens="The password alone lets the owner in until they turn it on again. The owner and all admins are "
            "told by mail. Be sure that it is the owner who asks.",
            done="The second factor is off.",
            operation="admin.users.reset-two-factor",
            deed="two_factor_reset",
            is_grave=True,
        ),
        Act(
            name="suspend",
            title="Suspend",
            happens="All sessions end, and nobody can sign in until the account is active again. Nothing is erased.",
            done="The account is suspended.",
            operation="admin.users.update-status",
            deed="status_change",
            status="suspended",
            is_grave=True,
        ),
        Act(
            name="activate",
            title="Let in again",
            happens="The owner can sign in again. Sessions that were ended stay so.",
            done="The account is active.",
            operation="admin.users.update-status",
            deed="status_change",
            status="active",
        ),
        Act(
            name="role",
            title="Change the role",
            happens="The new role counts at once, in every session. The owner and all admins are told by mail.",
            done="The role was changed.",
            operation="admin.users.update-role",
            deed="role_change",
            permission=Permission.ROLES_WRITE,
            gives_role=True,
            is_grave=True,
        ),
        Act(
            name="delete",
            title="Delete",
            happens="The account ends at once: sessions, links and sign-ins. The owner is told by mail. Its data is "
            "erased after the grace period, and there is no way back.",
            done="The account was deleted.",
            operation="admin.users.delete",
            deed="deletion",
            is_grave=True,
        ),
    )
}
