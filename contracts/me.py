"""The caller's own account: `users.v1.me.*`."""

from pydantic import field_validator

from contracts.operations import Caller, Operation
from contracts.users import Profile, User
from contracts.wire import PersonName, Wire, not_null


class GetMe(Wire):
    """Read the caller's account and whole profile."""


class Me(Wire):
    user: User
    profile: Profile


class UpdateMe(Wire):
    """Change the caller's name; absent fields stay as they are."""

    first_name: PersonName | None = None
    last_name: PersonName | None = None
    expected_revision: int | None = None

    _not_null = field_validator("first_name", "last_name", mode="before")(not_null)


class MeUpdated(Wire):
    user: User


OPERATIONS = (
    Operation("users.v1.me.get", GetMe, Me, "GET /users/me", caller=Caller.SIGNED_IN),
    Operation(
        "users.v1.me.update",
        UpdateMe,
        MeUpdated,
        "PUT /users/me",
        caller=Caller.SIGNED_IN,
        writes=True,
        emits=("ProfileUpdated",),
    ),
)
