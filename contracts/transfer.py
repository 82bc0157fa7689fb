"""Users as lines of JSON: what `users import` reads and `users export` writes."""

from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints

from contracts.users import Language, Role, Status
from contracts.wire import Email, Moment, PersonName, Text, Timestamp, Wire


class ImportedUser(Wire):
    """One line of an import, or of an export, of which the last four fields are not taken over. Without a
    `passwordHash` the user sets a password by way of a reset. A field of another name is refused: a hash that is
    misnamed would leave an account that nobody can enter."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    first_name: PersonName
    last_name: PersonName
    password_hash: Annotated[Text, StringConstraints(min_length=1, max_length=512)] | None = Field(
        default=None, repr=False
    )
    role: Role = "user"
    suspended: bool = False
    email_verified: bool = False
    created_at: Moment | None = None
    password_changed_at: Moment | None = None
    language: Language | None = None
    id: UUID | None = None
    status: Status | None = None
    two_factor_enabled: bool | None = None
    last_login_at: Moment | None = None


class ExportedUser(Wire):
    """One line of an export: an import elsewhere, or here, reads it as it stands."""

    id: UUID
    email: str
    first_name: str
    last_name: str
    password_hash: str | None = Field(default=None, repr=False, exclude_if=lambda value: value is None)
    role: Role
    status: Status
    suspended: bool
    email_verified: bool
    two_factor_enabled: bool
    language: Language | None
    created_at: Timestamp
    password_changed_at: Timestamp
    last_login_at: Timestamp | None


class RefusedLine(Wire):
    """Why a line of an import became no user: its number, from 1, and every fault."""

    line: int
    field: str
    code: str
    message: str
