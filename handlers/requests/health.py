"""Is the service well, and may it be sent work."""

from contracts.health import CheckHealth, CheckReady, Health
from domain.refusals import Fault, NotReady
from handlers.context import Call, Context, Handlers


async def check_health(ctx: Context, _: Call, __: CheckHealth) -> Health:
    """How everything is; a success, whatever it says."""
    return await ctx.check_health()


async def check_ready(ctx: Context, _: Call, __: CheckReady) -> Health:
    """The same while all that is required answers; else `NotReady` with what does not."""
    health = await ctx.check_health()
    if health.status == "unhealthy":
        raise NotReady(faults=[Fault(check.name, check.status, check.message) for check in health.checks])
    return health


HANDLERS: Handlers = {CheckHealth: check_health, CheckReady: check_ready}
