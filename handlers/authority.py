"""Who may act on whom: decided under the locks of both rows, so that no act comes after the end of its right."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from adapters.audit_log import AuditRow
from adapters.unit_of_work import UnitOfWork
from domain.permissions import Act, Role, may_act, may_give
from domain.refusals import BadToken, Forbidden, NotFound, Refusal, StateConflict
from domain.user import User
from handlers.callers import require_permission
from handlers.context import Call, Context


@asynccontextmanager
async def acting_on(
    ctx: Context, call: Call, user_id: UUID, act: Act, *, gives: Role | None = None
) -> AsyncIterator[tuple[UnitOfWork, User]]:
    """A transaction in which the caller may do this to an account, which is locked, and give it this role.

    Raises `NotFound`, or `BadToken`, `SecondFactorRequired` and `Forbidden` by the rows as they stand; that an act was
    forbidden, or came to nothing because the state forbids it, is stored before it is answered.
    """
    try:
        async with ctx.unit_of_work(call) as work:
            yield work, await _lock_target(ctx, work, call, user_id, act, gives)
    except (Forbidden, StateConflict) as refusal:
        row = AuditRow(
            action=f"{act}_refused",
            success=False,
            at=ctx.now(),
            user_id=user_id,
            resource_id=str(user_id),
            details={"reason": refusal.code},
        )
        await store_refusal(ctx, call, row, refusal)
        raise


async def store_refusal(ctx: Context, call: Call, row: AuditRow, refusal: Refusal) -> None:
    """Write down that an operator was refused; all that the act had begun is taken back already."""
    async with ctx.unit_of_work(call) as work:
        await work.audit(row)
        await work.commit(refusal)


async def _lock_target(ctx: Context, work: UnitOfWork, call: Call, user_id: UUID, act: Act, gives: Role | None) -> User:
    actor_id = call.signed_in.user_id
    locked = await work.users.lock_each(actor_id, user_id)
    actor, target = locked[actor_id], locked[user_id]
    if actor is None:
        raise BadToken
    await require_permission(ctx, work.connection, call)  # who ends a session or a role waits for the row lock
    if target is None:
        raise NotFound
    if not may_act(act, actor.role, target.role, on_oneself=actor.id == target.id):
        raise Forbidden
    if gives is not None and not may_give(actor.role, gives):
        raise Forbidden
    return target


async def lock_giver(ctx: Context, work: UnitOfWork, call: Call, role: Role) -> None:
    """Lock the caller's own row, by which they may open an account of this role. Raises as `acting_on` does."""
    actor = await work.users.lock(call.signed_in.user_id)
    if actor is None:
        raise BadToken
    await require_permission(ctx, work.connection, call)
    if not may_give(actor.role, role):
        raise Forbidden
