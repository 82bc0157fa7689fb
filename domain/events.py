"""What has happened to a user: facts, named in the past, as frozen dataclasses.

Each has a model of the same name and fields in the published registry, which says what is personal.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFailed(DomainEvent):
    ip: str | None
    user_agent: str | None
    reason: str
    failures: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileUpdated(DomainEvent):
    changed: dict[str, object]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRoleChanged(DomainEvent):
    from_: str
    to: str
    reason: str
