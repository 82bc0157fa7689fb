"""What has happened to a user: facts, named in the past, as frozen dataclasses.

Each has a model of the same name and fields in the published registry, which says what is personal.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from domain.avatar import Avatar


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainEvent:
    user_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRegistered(DomainEvent):
    email: str
    first_name: str
    last_name: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailVerificationRequested(DomainEvent):
    email: str
    token_id: UUID
    not_me_token_id: UUID | None = None
    expires_at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailVerified(DomainEvent):
    email: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLogin(DomainEvent):
    ip: str | None
    user_agent: str | None
    timestamp: datetime
    session_id: UUID
    method: str
    new_device: bool
    device_info: dict[str, str]
    token_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFailed(DomainEvent):
    ip: str | None
    user_agent: str | None
    reason: str
    failures: int
    wrong_codes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLoggedOut(DomainEvent):
    session_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRevoked(DomainEvent):
    session_id: UUID
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTokenReused(DomainEvent):
    session_id: UUID
    ip: str | None
    user_agent: str | None
    token_id: UUID | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileUpdated(DomainEvent):
    changed: dict[str, object]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRoleChanged(DomainEvent):
    from_: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserStatusChanged(DomainEvent):
    from_: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInvited(DomainEvent):
    email: str
    token_id: UUID
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationRepeated(DomainEvent):
    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLocked(DomainEvent):
    until: datetime
    token_id: UUID
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnlocked(DomainEvent):
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordResetRequested(DomainEvent):
    token_id: UUID
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordReset(DomainEvent):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChanged(DomainEvent):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordResetRequired(DomainEvent):
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailChangeRequested(DomainEvent):
    new_email: str
    token_id: UUID
    cancel_token_id: UUID
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailChanged(DomainEvent):
    email: str
    previous_email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmailChangeCancelled(DomainEvent):
    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AvatarUpdated(DomainEvent):
    avatar: Avatar | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoFactorEnabled(DomainEvent):
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoFactorDisabled(DomainEvent):
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupCodesRegenerated(DomainEvent):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupCodeUsed(DomainEvent):
    remaining: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeleted(DomainEvent):
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserErased(DomainEvent):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class DataExported(DomainEvent):
    pass
