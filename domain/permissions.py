"""Roles, and the two tables that say what each may do, and on whom."""

from typing import Literal

Role = Literal["user", "moderator", "admin"]
Act = Literal[
    "status_change", "role_change", "unlock", "reset_requirement", "session_revocation", "two_factor_reset", "deletion"
]
"""What an operator does to an account; a refused one stands in the audit log as `<act>_refused`."""

PERMISSIONS: dict[Role, frozenset[str]] = {
    "user": frozenset(),
    "moderator": frozenset({"users:read", "users:write", "audit:read"}),
    "admin": frozenset(
        {
            "users:read",
            "users:write",
            "roles:write",
            "audit:read",
            "dead-letters:read",
            "dead-letters:replay",
            "dead-letters:discard",
        }
    ),
}

REACH: dict[Role, frozenset[Role]] = {
    "user": frozenset(),
    "moderator": frozenset({"user"}),
    "admin": frozenset({"user", "moderator", "admin"}),
}
"""The roles of the accounts that a role may act on; also those that it may give."""

NEVER_ON_ONESELF: frozenset[Act] = frozenset({"status_change", "role_change", "two_factor_reset", "deletion"})
"""What would take an operator's own role or account away, or step around their own second factor."""


def may_give(actor: Role, role: Role) -> bool:
    """May somebody of one role give an account another? Never one above their own."""
    return role in REACH[actor]


def may_act(act: Act, actor: Role, target: Role, *, on_oneself: bool) -> bool:
    """May an account of one role do this to one of another? What the operation permits is asked besides."""
    return target in REACH[actor] and not (on_oneself and act in NEVER_ON_ONESELF)
