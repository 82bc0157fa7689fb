"""Is the service well, and may it be sent work: `users.v1.health.*`."""

from typing import Literal

from contracts.operations import Limit, Operation
from contracts.wire import Wire


class CheckHealth(Wire):
    """Ask how the service and its dependencies are; always answered with a success."""


class CheckReady(Wire):
    """Ask whether the service can do its work now."""


class Check(Wire):
    """One dependency: how it answered and how fast."""

    name: str
    status: Literal["healthy", "degraded", "unhealthy"]
    response_time_ms: float
    message: str


class Health(Wire):
    status: Literal["healthy", "degraded", "unhealthy"]
    checks: list[Check]
    version: str
    uptime: float
    environment: str


OPERATIONS = (
    Operation("users.v1.health.check", CheckHealth, Health, "GET /health", limit=Limit.NONE),
    Operation("users.v1.health.ready", CheckReady, Health, "GET /health/ready", limit=Limit.NONE),
)
