"""Profiles: `users.v1.profile.*`."""

import re
from typing import Annotated
from uuid import UUID
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from contracts.operations import Caller, Operation
from contracts.users import Language, Profile, PublicProfile, Theme
from contracts.wire import Broken, DisplayName, PersonName, Text, Wire, not_null

_HTTPS = re.compile(r"https://[^\s/?#@\\<>\"']+\.[^\s/?#@\\<>\"']+([/?#][^\s<>\"'\\]*)?")


def _https_address(text: str) -> str:
    if not _HTTPS.fullmatch(text) or not text.isprintable():
        raise Broken("not_https", "This is no https address.")
    return text


def _iana_zone(text: str) -> str:
    if text not in available_timezones():
        raise Broken("not_a_timezone", "This is no IANA time zone.")
    return text


HttpsAddress = Annotated[Text, StringConstraints(max_length=500), AfterValidator(_https_address)]
TimeZone = Annotated[Text, StringConstraints(max_length=64), AfterValidator(_iana_zone)]


class GetProfile(Wire):
    """Read a profile: the public part, or the whole for its owner."""

    user_id: UUID


class ProfileShown(Wire):
    profile: Profile | PublicProfile


class NotificationChanges(Wire):
    email: bool | None = None
    push: bool | None = None
    sms: bool | None = None

    _not_null = field_validator("email", "push", "sms", mode="before")(not_null)


class UpdateProfile(Wire):
    """Change the caller's profile; absent fields stay as they are, null clears."""

    first_name: PersonName | None = None
    last_name: PersonName | None = None
    display_name: DisplayName | None = None
    bio: Annotated[Text, StringConstraints(max_length=500)] | None = None
    website: HttpsAddress | None = None
    location: Annotated[Text, StringConstraints(max_length=100)] | None = None
    timezone: TimeZone | None = None
    language: Language | None = None
    theme: Theme | None = None
    notifications: NotificationChanges | None = None
    social_links: Annotated[list[HttpsAddress], Field(max_length=10)] | None = None
    expected_revision: int | None = None

    _not_null = field_validator(
        "first_name", "last_name", "timezone", "language", "theme", "notifications", "social_links", mode="before"
    )(not_null)

    @field_validator("bio")
    @classmethod
    def _no_control_characters(cls, text: str | None) -> str | None:
        if text is not None and any(char != "\n" and not char.isprintable() for char in text):
            raise Broken("control_characters", "Control characters are not allowed.")
        return text


class ProfileUpdated(Wire):
    profile: Profile


OPERATIONS = (
    Operation("users.v1.profile.get", GetProfile, ProfileShown, "GET /users/:id/profile", caller=Caller.SIGNED_IN),
    Operation(
        "users.v1.profile.update",
        UpdateProfile,
        ProfileUpdated,
        "PUT /users/me/profile",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("ProfileUpdated",),
    ),
)
