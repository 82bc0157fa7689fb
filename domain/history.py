"""What a user's events say that the user must be: a pure fold, and where a row says something else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Facts = Mapping[str, object]

PERSONAL = frozenset(
    {
        "email", "first_name", "last_name", "display_name", "bio", "website", "location", "social_links", "avatar",
        "timezone", "language", "theme", "notifications",
    }
)  # fmt: skip
"""Facts that are gone once their user is erased, and that no report may quote."""

_REGISTERED: Facts = {
    "role": "user", "status": "active", "email_verified": False, "two_factor_enabled": False,
    "password_reset_required": False, "erased": False, "revision": 1, "display_name": None, "bio": None,
    "website": None, "location": None, "social_links": [], "avatar": None, "timezone": "UTC", "theme": "light",
    "notifications": {"email": True, "push": True, "sms": False},
}  # fmt: skip
_ERASED: Facts = {"erased": True, "email_verified": False, "two_factor_enabled": False}
_SETS: Mapping[str, Facts] = {
    "EmailVerified": {"email_verified": True},
    "PasswordReset": {"password_reset_required": False},
    "PasswordChanged": {"password_reset_required": False},
    "PasswordResetRequired": {"password_reset_required": True},
    "TwoFactorEnabled": {"two_factor_enabled": True},
    "TwoFactorDisabled": {"two_factor_enabled": False},
    "UserDeleted": {"status": "deleted"},
}
_PROFILE = {
    "firstName": "first_name", "lastName": "last_name", "displayName": "display_name", "bio": "bio",
    "website": "website", "location": "location", "timezone": "timezone", "language": "language", "theme": "theme",
    "notifications": "notifications", "socialLinks": "social_links",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Past:
    """An event as it stands in the table: `data` by the names of the wire, its personal part among it, if it opens."""

    version: int
    type: str
    data: Facts


@dataclass(slots=True)
class History:
    """What one user's events say, taken in one after the other, in the order of their versions."""

    version: int = 0
    facts: dict[str, object] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def take(self, event: Past) -> None:
        """The next event. What cannot be so is a fault, and what is missing is not made up for."""
        if event.version != self.version + 1:
            self.faults.append(f"version {event.version} follows {self.version}")
        if (self.version == 0) != (event.type == "UserRegistered"):
            self.faults.append(f"version {event.version} is {event.type}")
        if self.facts.get("erased"):
            self.faults.append(f"version {event.version} comes after the user was erased")
        self.version = event.version
        self._fold(event)

    def _fold(self, event: Past) -> None:
        data = event.data
        match event.type:
            case "UserRegistered":
                self.facts = {**_REGISTERED, **_names(data), "email": data.get("email")}
            case "EmailChanged" | "EmailChangeCancelled":
                self.facts["email"] = data.get("email")
            case "UserRoleChanged":
                self.facts["role"] = data.get("to")
            case "UserStatusChanged":
                self.facts["status"] = data.get("to")
            case "AvatarUpdated":
                self.facts["avatar"] = data.get("avatar")
            case "ProfileUpdated":
                changed = data.get("changed")
                self.facts |= {_PROFILE[name]: value for name, value in _mapping(changed).items() if name in _PROFILE}
                self.facts["revision"] = data.get("revision")
            case "UserErased":
                self.facts |= _ERASED
            case _:
                self.facts |= _SETS.get(event.type, {})

    def against(self, row: Facts) -> list[str]:
        """The names of what a row says otherwise; personal facts count while they can be known."""
        expected = {**self.facts, "version": self.version}
        hidden = PERSONAL if expected.get("erased") or row.get("erased") else frozenset()
        return sorted(name for name, fact in expected.items() if name not in hidden and row.get(name) != fact)


def _names(data: Facts) -> dict[str, object]:
    return {"first_name": data.get("firstName"), "last_name": data.get("lastName")}


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
