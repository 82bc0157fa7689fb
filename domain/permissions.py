"""Roles, and the one table that says what each may do."""

from typing import Literal

Role = Literal["user", "moderator", "admin"]

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
