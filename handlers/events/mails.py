"""Which event sends which mail to whom, as one table; docs/mail.md shows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from pydantic import JsonValue

from adapters.event_log import StoredEvent
from adapters.settings import Settings
from contracts.admin_users import CAME_WITH_ACCOUNT

Data = Mapping[str, JsonValue]
Values = Mapping[str, str | datetime]


class To(Enum):
    """Whose mailbox: always an address that stands in a row or stood there, never one that a request brought."""

    USER = "the user"
    LINK = "the link's address"
    NEW = "the new address, while it is the user's"
    PREVIOUS = "the previous address"
    ADMINS = "every other active admin"


@dataclass(frozen=True, slots=True)
class LinkOf:
    """The field of the event that names a link's row, and the page to which the link leads."""

    field: str
    page: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail of an event. `without_link`: a warning that is worth sending when it has no link that is still open."""

    template: str
    to: To = To.USER
    link: LinkOf | None = None
    second: LinkOf | None = None
    without_link: bool = False
    also_deleted: bool = False
    when: Callable[[Data, Settings], bool] = lambda _, __: True
    facts: Callable[[StoredEvent], Values] = lambda _: {}


def _circumstances(stored: StoredEvent) -> Values:
    """From where, by parsed family names: what a client says of itself is not printed."""
    data = stored.event.data
    info = data.get("deviceInfo")
    names = [str(info[name]) for name in ("browser", "os") if name in info] if isinstance(info, dict) else []
    return {"device": " · ".join(names) or "–", "ip": str(data.get("ip") or stored.ip or "–")}


def _roles(stored: StoredEvent) -> Values:
    return {"from_role": str(stored.event.data["from"]), "to_role": str(stored.event.data["to"])}


def _until(stored: StoredEvent) -> Values:
    return {"until": datetime.fromisoformat(str(stored.event.data["until"]))}


def _codes_left(stored: StoredEvent) -> Values:
    return {"remaining": str(stored.event.data["remaining"]), **_circumstances(stored)}


def _is_guessing(data: Data, settings: Settings) -> bool:
    """So many wrong second-factor codes in a row, behind a right password."""
    return data["reason"] == "wrong_second_factor" and data.get("wrongCodes") == settings.wrong_codes_mailed


def _by(who: str) -> Callable[[Data, Settings], bool]:
    return lambda data, _: data["by"] == who


def _was_changed(data: Data, _: Settings) -> bool:
    """Not of an account that came with its role."""
    return data["reason"] not in CAME_WITH_ACCOUNT


_CHANGED = Mail(template="password_changed", facts=_circumstances)
_NOT_ME = LinkOf("tokenId", "/not-me")

MAILS: Mapping[str, tuple[Mail, ...]] = {
    "EmailVerificationRequested": (
        Mail(
            template="verification",
            to=To.LINK,
            link=LinkOf("tokenId", "/verify-email"),
            second=LinkOf("notMeTokenId", "/not-me"),
        ),
    ),
    "EmailVerified": (Mail(template="welcome", when=lambda data, _: data["reason"] == "registration"),),
    "RegistrationRepeated": (Mail(template="registration_repeated"),),
    "UserInvited": (Mail(template="invitation", to=To.LINK, link=LinkOf("tokenId", "/accept-invitation")),),
    "UserLogin": (
        Mail(
            template="new_device",
            link=_NOT_ME,
            without_link=True,
            when=lambda data, _: bool(data["newDevice"]),
            facts=_circumstances,
        ),
    ),
    "LoginFailed": (Mail(template="second_factor_guessing", when=_is_guessing, facts=_circumstances),),
    "AccountLocked": (Mail(template="account_locked", link=LinkOf("tokenId", "/unlock"), facts=_until),),
    "RefreshTokenReused": (Mail(template="token_reuse", link=_NOT_ME, without_link=True, facts=_circumstances),),
    "PasswordResetRequested": (Mail(template="password_reset", link=LinkOf("tokenId", "/reset-password")),),
    "PasswordReset": (_CHANGED,),
    "PasswordChanged": (_CHANGED,),
    "EmailChangeRequested": (
        # The warning first: it must not fail of an address that a thief has typed.
        Mail(
            template="email_change_warning",
            to=To.LINK,
            link=LinkOf("cancelTokenId", "/cancel-email-change"),
            facts=_circumstances,
        ),
        Mail(template="email_change_confirm", to=To.LINK, link=LinkOf("tokenId", "/confirm-email-change")),
    ),
    "EmailChanged": (
        Mail(template="email_changed_old", to=To.PREVIOUS, also_deleted=True),
        Mail(template="email_changed", to=To.NEW),
    ),
    "EmailChangeCancelled": (Mail(template="email_change_cancelled"),),
    "TwoFactorEnabled": (Mail(template="two_factor_on", facts=_circumstances),),
    "TwoFactorDisabled": (
        Mail(template="two_factor_off", when=_by("user"), facts=_circumstances),
        Mail(template="two_factor_reset", when=_by("admin")),
        Mail(template="two_factor_reset_admins", to=To.ADMINS, when=_by("admin")),
    ),
    "BackupCodeUsed": (Mail(template="backup_code_used", facts=_codes_left),),
    "UserRoleChanged": (
        Mail(template="role_changed", when=_was_changed, facts=_roles),
        Mail(template="role_changed_admins", to=To.ADMINS, when=_was_changed, facts=_roles),
    ),
    # An account that ends because nobody ever verified it says nothing: its address may be a stranger's.
    "UserDeleted": (Mail(template="deleted", also_deleted=True, when=lambda data, _: data["by"] != "system"),),
}
