"""Who calls: a token names user and session, their rows say whether that still counts."""

from uuid import UUID

from adapters.sessions import standing_of
from contracts.operations import Caller as Wanted
from contracts.operations import Operation, Permission
from domain.refusals import BadToken, Forbidden, NoCaller
from domain.session import Standing
from handlers.context import Caller, Context


async def authenticate(ctx: Context, operation: Operation, authorization: str | None) -> Caller | None:
    """The caller of an operation, or None where it takes anyone.

    Raises `NoCaller`, `BadToken`, `ExpiredToken` or `Forbidden`.
    """
    wanted = operation.caller
    if wanted is Wanted.ANYONE or (wanted is Wanted.IF_SIGNED_IN and not authorization):
        return None
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NoCaller
    claims = ctx.mint.read_access(token.strip(), at=ctx.now())
    stands = await standing(ctx, claims.user_id, claims.session_id)
    if stands is None or not stands.is_live(ctx.now()):
        raise BadToken
    caller = Caller(claims.user_id, claims.session_id, stands.role, claims.auth_time)
    if isinstance(wanted, Permission) and not caller.may(wanted.value):
        raise Forbidden
    return caller


async def standing(ctx: Context, user_id: UUID, session_id: UUID) -> Standing | None:
    """How user and session stand: from L1, which every writer's broadcast empties, else one indexed read."""
    key = (user_id, session_id)
    known = ctx.standings.get(key)
    if known is not None:
        return known
    async with ctx.database.connection() as connection:
        found = await standing_of(connection, user_id, session_id)
    if found is not None:
        ctx.standings.put(key, user_id, found.version, found)
    return found
