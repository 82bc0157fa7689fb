"""Every event that is announced on `users.events.v1.<Type>.<userId>`: its model, then the registry.

A field marked `PERSONAL` is plain on the stream, encrypted under a key of its user at rest, and null once erased.
Within one major version a type may gain fields, and never lose, rename or narrow one.
"""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, JsonValue, field_validator
from pydantic.alias_generators import to_camel

from contracts.users import Avatar
from contracts.wire import Timestamp, Wire

SUBJECT_PREFIX = "users.events.v1"
SOURCE = "/user-service"
PERSONAL = Field(json_schema_extra={"personal": True})


class EventData(Wire):
    """What every event says beside its type: whose it is."""

    user_id: UUID


class UserRegistered(EventData):
    email: Annotated[str | None, PERSONAL]
    first_name: Annotated[str | None, PERSONAL]
    last_name: Annotated[str | None, PERSONAL]
    origin: Literal["registration", "import", "admin"]


class EmailVerificationRequested(EventData):
    email: Annotated[str | None, PERSONAL]
    token_id: UUID
    not_me_token_id: UUID | None = None
    expires_at: Timestamp
    reason: Literal["registration", "resend"]


class EmailVerified(EventData):
    email: Annotated[str | None, PERSONAL]
    reason: Literal["registration", "reset", "operator"]


class UserLogin(EventData):
    ip: Annotated[str | None, PERSONAL]
    user_agent: Annotated[str | None, PERSONAL]
    timestamp: Timestamp
    session_id: UUID
    method: Literal["password", "password+totp", "password+backup-code"]
    new_device: bool
    device_info: Annotated[dict[str, str] | None, PERSONAL]
    token_id: UUID | None = None


class LoginFailed(EventData):
    ip: Annotated[str | None, PERSONAL]
    user_agent: Annotated[str | None, PERSONAL]
    reason: str
    failures: int
    wrong_codes: int | None = None
    """Wrong second-factor codes in a row; at the third the owner is told by mail."""


class UserLoggedOut(EventData):
    session_id: UUID


class SessionRevoked(EventData):
    session_id: UUID
    reason: str


class RefreshTokenReused(EventData):
    session_id: UUID
    ip: Annotated[str | None, PERSONAL]
    user_agent: Annotated[str | None, PERSONAL]
    token_id: UUID | None = None
    expires_at: Timestamp | None = None


class ProfileUpdated(EventData):
    changed: Annotated[dict[str, JsonValue] | None, PERSONAL]
    revision: int

    @field_validator("changed", mode="before")
    @classmethod
    def _wire_names(cls, changed: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        return None if changed is None else {to_camel(name): value for name, value in changed.items()}


class UserRoleChanged(EventData):
    """Operators write reasons, here and below, and write of people in them."""

    from_: str = Field(alias="from")
    to: str
    reason: Annotated[str | None, PERSONAL]


class UserStatusChanged(EventData):
    from_: str = Field(alias="from")
    to: str
    reason: Annotated[str | None, PERSONAL]


class UserInvited(EventData):
    email: Annotated[str | None, PERSONAL]
    token_id: UUID
    expires_at: Timestamp


class RegistrationRepeated(EventData):
    email: Annotated[str | None, PERSONAL]


class AccountLocked(EventData):
    until: Timestamp
    token_id: UUID
    expires_at: Timestamp


class AccountUnlocked(EventData):
    reason: Annotated[str | None, PERSONAL]


class PasswordResetRequested(EventData):
    token_id: UUID
    expires_at: Timestamp


class PasswordReset(EventData):
    pass


class PasswordChanged(EventData):
    pass


class PasswordResetRequired(EventData):
    reason: Annotated[str | None, PERSONAL]


class EmailChangeRequested(EventData):
    new_email: Annotated[str | None, PERSONAL]
    token_id: UUID
    cancel_token_id: UUID
    expires_at: Timestamp


class EmailChanged(EventData):
    email: Annotated[str | None, PERSONAL]
    previous_email: Annotated[str | None, PERSONAL]


class EmailChangeCancelled(EventData):
    email: Annotated[str | None, PERSONAL]


class AvatarUpdated(EventData):
    avatar: Annotated[Avatar | None, PERSONAL]


class TwoFactorEnabled(EventData):
    by: Literal["user", "admin"]


class TwoFactorDisabled(EventData):
    by: Literal["user", "admin"]


class BackupCodesRegenerated(EventData):
    pass


class BackupCodeUsed(EventData):
    remaining: int


class UserDeleted(EventData):
    by: Literal["user", "admin", "system"]


class UserErased(EventData):
    pass


class DataExported(EventData):
    pass


class Metadata(Wire):
    """Where an event came from."""

    request_id: str
    actor_id: UUID | None = None
    session_id: UUID | None = None
    locale: str = "en"


class Event(Wire):
    """The body of a message on the stream: at once the CloudEvents data."""

    id: UUID
    type: str
    aggregate_id: UUID
    aggregate_type: Literal["User"] = "User"
    version: int
    timestamp: Timestamp
    data: dict[str, JsonValue]
    metadata: Metadata
    erased: bool | None = None


EVENTS: dict[str, type[EventData]] = {
    model.__name__: model
    for model in (
        UserRegistered,
        EmailVerificationRequested,
        EmailVerified,
        UserLogin,
        LoginFailed,
        UserLoggedOut,
        SessionRevoked,
        RefreshTokenReused,
        ProfileUpdated,
        UserRoleChanged,
        UserStatusChanged,
        UserInvited,
        RegistrationRepeated,
        AccountLocked,
        AccountUnlocked,
        PasswordResetRequested,
        PasswordReset,
        PasswordChanged,
        PasswordResetRequired,
        EmailChangeRequested,
        EmailChanged,
        EmailChangeCancelled,
        AvatarUpdated,
        TwoFactorEnabled,
        TwoFactorDisabled,
        BackupCodesRegenerated,
        BackupCodeUsed,
        UserDeleted,
        UserErased,
        DataExported,
    )
}


def personal_fields(model: type[EventData]) -> frozenset[str]:
    """The wire names of a type's personal fields."""
    return frozenset(
        field.alias or name
        for name, field in model.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("personal")
    )


def subject_of(event_type: str, user_id: UUID) -> str:
    """Where an event of a user is announced."""
    return f"{SUBJECT_PREFIX}.{event_type}.{user_id}"


def chain_of(user_id: UUID) -> str:
    """All events of a user, of whatever type."""
    return f"{SUBJECT_PREFIX}.*.{user_id}"
