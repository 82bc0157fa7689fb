"""What operators of the accounts do. Every look is an audit row: it has no event."""

from pydantic import JsonValue

from adapters.audit_log import AuditRow, add_audit_row, list_audit_rows
from adapters.sessions import sessions_of
from adapters.user_list import list_users
from adapters.users import account_of, security_of
from contracts.admin import AuditPage, GetUser, ListAuditLogs, ListUsers, UserPage, UserShown
from contracts.wire import Wire
from domain.refusals import NotFound
from handlers.callers import require_permission
from handlers.context import Call, Context, Handlers


async def users_list(ctx: Context, call: Call, request: ListUsers) -> UserPage:
    """A page of users."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        users, pagination = await list_users(connection, request)
        await add_audit_row(connection, ctx.personal, call.trail, _look(ctx, "users_listed", request))
    return UserPage(items=users, pagination=pagination)


async def users_get(ctx: Context, call: Call, request: GetUser) -> UserShown:
    """One account, from the database: an operator must not act on what a cache remembers."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        account = await account_of(connection, request.user_id)
        if account is None:
            raise NotFound
        security = await security_of(connection, request.user_id)
        sessions = await sessions_of(
            connection, request.user_id, lifetimes=ctx.settings.lifetimes, at=ctx.now(), sessions_max=100
        )
        await add_audit_row(connection, ctx.personal, call.trail, _look(ctx, "user_viewed", request))
    return UserShown(user=account.user, profile=account.profile, security=security, sessions=sessions)


async def audit_logs_list(ctx: Context, call: Call, request: ListAuditLogs) -> AuditPage:
    """A page of the audit log."""
    async with ctx.database.connection() as connection:
        await require_permission(ctx, connection, call)
        entries, pagination = await list_audit_rows(connection, ctx.personal, request)
        await add_audit_row(connection, ctx.personal, call.trail, _look(ctx, "audit_log_listed", request))
    return AuditPage(items=entries, pagination=pagination)


def _look(ctx: Context, action: str, request: Wire) -> AuditRow:
    asked: dict[str, JsonValue] = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked.pop("cursor", None)  # it may hold an address
    search = asked.pop("search", None)
    return AuditRow(
        action=action,
        success=True,
        at=ctx.now(),
        resource_id=str(asked["userId"]) if "userId" in asked else None,
        details=asked,
        personal={} if search is None else {"search": search},
    )


HANDLERS: Handlers = {ListUsers: users_list, GetUser: users_get, ListAuditLogs: audit_logs_list}
