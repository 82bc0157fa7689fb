"""What operators of the accounts do: `users.v1.admin.*`."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, JsonValue, StringConstraints

from contracts.operations import Operation, Permission
from contracts.users import Profile, Role, Session, Status, User
from contracts.wire import Cursor, Limit100, Moment, Page, PageNumber, Text, Timestamp, Wire

UserSort = Literal["createdAt", "-createdAt", "email", "lastLoginAt"]


class ListUsers(Wire):
    """Read users a page at a time; the cursor of a reply leads on without a bound."""

    page: PageNumber | None = None
    cursor: Cursor | None = None
    limit: Limit100 = 20
    search: Annotated[Text, StringConstraints(min_length=1, max_length=254)] | None = None
    status: Status | None = None
    role: Role | None = None
    sort: UserSort = "-createdAt"


class UserPage(Page[User]):
    pass


class GetUser(Wire):
    """Read one account with all that an operator needs to help its owner."""

    user_id: UUID


class Security(Wire):
    """How an account is guarded."""

    failed_login_attempts: int
    account_locked: bool
    lockout_until: Timestamp | None
    last_password_change: Timestamp
    two_factor_enabled: bool


class UserShown(Wire):
    user: User
    profile: Profile
    security: Security
    sessions: list[Session]


class ListAuditLogs(Wire):
    """Read the audit log, newest first."""

    user_id: UUID | None = None
    action: Annotated[Text, StringConstraints(max_length=64)] | None = None
    success: bool | None = None
    from_: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None
    page: PageNumber | None = None
    cursor: Cursor | None = None
    limit: Limit100 = 20


class AuditEntry(Wire):
    """Who did what to whom, from where, and whether it came about; personal parts are null once erased."""

    id: UUID
    user_id: UUID | None
    actor_id: UUID | None
    action: str
    resource: str
    resource_id: str | None
    details: dict[str, JsonValue]
    ip_address: str | None
    user_agent: str | None
    success: bool
    request_id: str | None
    event_id: UUID | None
    created_at: Timestamp


class AuditPage(Page[AuditEntry]):
    pass


OPERATIONS = (
    Operation(
        "users.v1.admin.users.list",
        ListUsers,
        UserPage,
        "GET /admin/users",
        caller=Permission.USERS_READ,
        audits=("users_listed",),
    ),
    Operation(
        "users.v1.admin.users.get",
        GetUser,
        UserShown,
        "GET /admin/users/:id",
        caller=Permission.USERS_READ,
        audits=("user_viewed",),
    ),
    Operation(
        "users.v1.admin.audit-logs.list",
        ListAuditLogs,
        AuditPage,
        "GET /admin/audit-logs",
        caller=Permission.AUDIT_READ,
        audits=("audit_log_listed",),
    ),
)
