"""The account as a whole: its address, its end, and all that is held about it."""

from uuid import UUID

from pydantic import Field, JsonValue

from contracts.operations import Caller, Even, Operation
from contracts.operations import Limit as RateLimit
from contracts.users import Profile, Session, User
from contracts.wire import Code, Cursor, Email, Empty, Secret, Timestamp, Token, Wire


class ChangeEmail(Wire):
    """Ask for another address; it takes effect when the link sent there is used. The answer never tells whether the
    address is taken."""

    new_email: Email
    password: Secret
    code: Code | None = None
    backup_code: Code | None = None


class ConfirmEmailChange(Wire):
    """Use the link that was sent to the new address; the caller is who asked for it."""

    token: Token


class EmailChangeConfirmed(Wire):
    user: User


class CancelEmailChange(Wire):
    """Use the link that was sent to the old address: the change does not come about, or is undone."""

    token: Token


class DeleteMe(Wire):
    """End the caller's account; its data is erased after a grace period."""

    password: Secret
    code: Code | None = None
    backup_code: Code | None = None


class ExportMe(Wire):
    """Hand out all that is held about the caller; `cursor` goes on where an export that did not fit has ended."""

    password: Secret
    code: Code | None = None
    backup_code: Code | None = None
    cursor: Cursor | None = None


class KeptSession(Session):
    """A sign-in that is still on record, also when it is over."""

    ended_at: Timestamp | None
    end_reason: str | None


class KnownDevice(Wire):
    """A device that has signed in; its token is kept as a hash alone."""

    session_id: UUID | None
    created_at: Timestamp
    expires_at: Timestamp


class SentLink(Wire):
    """A link that was asked for by mail; its token is kept as a hash alone."""

    purpose: str
    address: str
    created_at: Timestamp
    expires_at: Timestamp


class SecondFactorState(Wire):
    """Whether codes are asked for; never the secret."""

    enabled: bool
    enabled_at: Timestamp | None
    backup_codes_left: int


class KeptAddress(Wire):
    """An address that the account has left and that nobody else may take yet, as it is compared."""

    address: str
    until: Timestamp


class Happened(Wire):
    """An event of the account, with where it came from where that was the user."""

    version: int
    type: str
    timestamp: Timestamp
    data: dict[str, JsonValue]
    ip_address: str | None
    user_agent: str | None


class Logged(Wire):
    """An entry of the audit log about the user; who else acted, and from where, is not theirs to know."""

    action: str
    success: bool
    by_user: bool | None = Field(description="null where nobody was signed in")
    details: dict[str, JsonValue]
    ip_address: str | None
    user_agent: str | None
    created_at: Timestamp


class Export(Wire):
    """All that is held about a user. `events` and `audit_log` begin with the newest; where they do not fit,
    `next_cursor` asks for the older ones."""

    exported_at: Timestamp
    user: User
    profile: Profile
    second_factor: SecondFactorState
    sessions: list[KeptSession]
    devices: list[KnownDevice]
    links: list[SentLink]
    kept_addresses: list[KeptAddress]
    events: list[Happened]
    audit_log: list[Logged]
    omitted: dict[str, int] = Field(description="how many older ones of a list are left out, where any are")
    next_cursor: str | None


class Exported(Wire):
    export: Export


_PROOF = ("login_refused", "two_factor_refused")
_PROVEN = ("LoginFailed", "AccountLocked", "BackupCodeUsed")

OPERATIONS = (
    Operation(
        "users.v1.me.change-email",
        ChangeEmail,
        Empty,
        "PUT /users/me/email",
        caller=Caller.SIGNED_IN,
        fresh=True,
        limit=RateLimit.MAIL,
        even=Even.ALWAYS,
        writes=True,
        emits=("EmailChangeRequested", *_PROVEN),
        audits=_PROOF,
    ),
    Operation(
        "users.v1.me.confirm-email-change",
        ConfirmEmailChange,
        EmailChangeConfirmed,
        "POST /users/me/email/confirm",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("EmailChanged",),
    ),
    Operation(
        "users.v1.auth.cancel-email-change",
        CancelEmailChange,
        Empty,
        "POST /auth/cancel-email-change",
        writes=True,
        emits=("EmailChangeCancelled", "SessionRevoked", "PasswordResetRequired"),
    ),
    Operation(
        "users.v1.me.delete",
        DeleteMe,
        Empty,
        "DELETE /users/me",
        caller=Caller.SIGNED_IN,
        fresh=True,
        writes=True,
        emits=("UserDeleted", "SessionRevoked", *_PROVEN),
        audits=_PROOF,
    ),
    Operation(
        "users.v1.me.export",
        ExportMe,
        Exported,
        "GET /users/me/export",
        caller=Caller.SIGNED_IN,
        fresh=True,
        writes=True,
        holds_secrets=True,
        emits=("DataExported", *_PROVEN),
        audits=_PROOF,
    ),
)
