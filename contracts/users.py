"""The shapes of a user, a profile, a session and a token pair, as every reply shows them."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from contracts.wire import Timestamp, Wire

Role = Literal["user", "moderator", "admin"]
Status = Literal["active", "suspended", "deleted"]
Language = Literal["en", "es", "fr", "de"]
Theme = Literal["light", "dark", "auto"]


class User(Wire):
    """An account: never a hash, a secret or a token."""

    id: UUID
    email: str
    first_name: str
    last_name: str
    role: Role
    status: Status
    email_verified: bool
    two_factor_enabled: bool
    revision: int
    version: int
    last_login_at: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp


class Notifications(Wire):
    """The channels a user wants to be reached on."""

    email: bool = True
    push: bool = True
    sms: bool = False


class Avatar(Wire):
    """The picture a user shows; `sizes` maps pixels to the object's name in bucket `user-avatars`."""

    id: UUID
    content_type: str
    width: int
    height: int
    sizes: dict[str, str]


class PublicProfile(Wire):
    """The part of a profile that every signed-in caller may see."""

    user_id: UUID
    display_name: str | None = None
    bio: str | None = None
    website: str | None = None
    location: str | None = None
    avatar: Avatar | None = None
    social_links: list[str] = Field(default_factory=list)


class Profile(PublicProfile):
    """The whole profile, for its owner and for admins."""

    timezone: str
    language: Language
    theme: Theme
    notifications: Notifications
    revision: int
    updated_at: Timestamp


class Session(Wire):
    """One sign-in that lives on: a family of refresh tokens."""

    id: UUID
    device_info: dict[str, str]
    ip_address: str | None
    user_agent: str | None
    created_at: Timestamp
    last_active_at: Timestamp
    expires_at: Timestamp
    current: bool = False


class Tokens(Wire):
    """What a client keeps after signing in; all three are secrets."""

    access_token: str
    refresh_token: str
    device_token: str | None = None
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the scheme of RFC 6750
    expires_in: Annotated[int, Field(description="seconds until the access token expires")]
    refresh_expires_in: Annotated[int, Field(description="seconds until the refresh token expires")]
