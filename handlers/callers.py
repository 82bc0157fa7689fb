"""Who calls: a token names user and session, their rows say whether that still counts."""

from datetime import timedelta

from adapters.postgres import Connection
from adapters.sessions import standing_of
from adapters.tokens import AccessClaims
from adapters.unit_of_work import UnitOfWork
from contracts.api import BY_SUBJECT
from contracts.operations import FRESH_S, Operation, Permission
from contracts.operations import Caller as Wanted
from domain.permissions import PERMISSIONS
from domain.refusals import (
    BadToken,
    ExpiredToken,
    Forbidden,
    NoCaller,
    ReauthenticationRequired,
    SecondFactorRequired,
)
from domain.session import Standing
from domain.user import User
from handlers.context import Call, Caller, Context


async def authenticate(ctx: Context, operation: Operation, authorization: str | None) -> Caller | None:
    """The caller of an operation, or None where it takes anyone.

    Raises `NoCaller`, `BadToken`, `ExpiredToken`, `Forbidden`, `SecondFactorRequired` or `ReauthenticationRequired`.
    """
    wanted = operation.caller
    if wanted is Wanted.ANYONE or (wanted is Wanted.IF_SIGNED_IN and not authorization):
        return None
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NoCaller
    try:
        claims = ctx.mint.read_access(token.strip(), at=ctx.now())
    except ExpiredToken:
        if wanted is Wanted.IF_SIGNED_IN:
            return None  # the request may name its session in another way
        raise
    stands = await standing(ctx, claims)
    if stands is None:
        raise BadToken
    caller = Caller(
        claims.user_id, claims.session_id, stands.role, claims.auth_time, has_second_factor=stands.has_second_factor
    )
    if isinstance(wanted, Permission):
        _require(ctx, wanted, stands)
    if operation.fresh and ctx.now() > caller.auth_time + timedelta(seconds=FRESH_S):
        raise ReauthenticationRequired(FRESH_S)
    return caller


def _require(ctx: Context, wanted: Permission, stands: Standing) -> None:
    if wanted.value not in PERMISSIONS[stands.role]:
        raise Forbidden
    if ctx.settings.admin_second_factor and not stands.has_second_factor:
        raise SecondFactorRequired


async def standing(ctx: Context, claims: AccessClaims) -> Standing | None:
    """How user and session of a token stand, where it counts still; that it was shown is an act of its session.

    From L1, which every writer's broadcast empties, else one indexed read. A refresh or a new proof of identity comes
    without a new version: what they have changed is read where L1 would refuse, or the token is the newer one.
    """
    at = ctx.now()
    stands = ctx.standings.get((claims.user_id, claims.session_id))
    if stands is None or not stands.is_live(at) or _is_outdated(stands, claims):
        stands = await _read_standing(ctx, claims)
    if stands is None or not stands.is_live(at):
        return None
    ctx.activity.note(stands, at)
    return stands


def _is_outdated(stands: Standing, claims: AccessClaims) -> bool:
    return stands.is_older_than(claims.auth_time, has_second_factor=claims.has_second_factor)


async def _read_standing(ctx: Context, claims: AccessClaims) -> Standing | None:
    epoch = ctx.standings.epoch
    async with ctx.database.connection() as connection:
        found = await standing_of(connection, claims.user_id, claims.session_id, ctx.settings.lifetimes)
    if found is not None:
        ctx.standings.put((found.user_id, found.session_id), found.user_id, found.version, found, epoch=epoch)
    return found


async def lock_caller(ctx: Context, work: UnitOfWork, call: Call) -> User:
    """The caller's own account under its lock. What L1 said at the door is asked again: a write must not come after
    the end of its session. Raises `BadToken`."""
    caller = call.signed_in
    user = await work.users.lock(caller.user_id)
    session = await work.sessions.get(caller.session_id)
    if user is None or user.status != "active" or session is None:
        raise BadToken
    if not session.is_live(ctx.now(), ctx.settings.lifetimes):
        raise BadToken
    return user


async def require_permission(ctx: Context, connection: Connection, call: Call) -> None:
    """The permission of the call's operation, by the rows as they stand now. Raises `BadToken`, `Forbidden` or
    `SecondFactorRequired`."""
    caller, wanted = call.signed_in, BY_SUBJECT[call.subject].caller
    stands = await standing_of(connection, caller.user_id, caller.session_id, ctx.settings.lifetimes)
    if stands is None or not stands.is_live(ctx.now()):
        raise BadToken
    if not isinstance(wanted, Permission):
        raise Forbidden
    _require(ctx, wanted, stands)
