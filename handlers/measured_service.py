"""The micro service of the bus, which tells of each endpoint what the dispatcher has measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from nats.aio.client import Client
from nats.micro.service import Service, ServiceConfig, ServiceStats

from adapters.nats import leave

SERVICE_NAME = "user-service"


@dataclass(slots=True)
class Figures:
    """What `$SRV.STATS` reports of an endpoint: requests, error replies and the real time of handling."""

    requests: int = 0
    errors: int = 0
    nanoseconds: int = 0
    last_error: str = ""


class MeasuredService(Service):
    """The library counts only how long admitting takes; the figures reported are the dispatcher's."""

    def __init__(self, client: Client, config: ServiceConfig, figures: Mapping[str, Figures]) -> None:
        super().__init__(client, config)
        self._figures = figures

    async def drain_endpoints(self) -> None:
        """Leave the queue group without dropping what was handed over; the library's `stop` would drop it."""
        subscriptions = [endpoint._subscription for endpoint in self._endpoints if endpoint._subscription]  # noqa: SLF001
        self._endpoints = []
        await leave(self._client, subscriptions)

    def stats(self) -> ServiceStats:
        """All endpoints with what really happened there."""
        stats = super().stats()
        for endpoint in stats.endpoints:
            figures = self._figures[endpoint.subject]
            endpoint.num_requests = figures.requests
            endpoint.num_errors = figures.errors
            endpoint.processing_time = figures.nanoseconds
            endpoint.average_processing_time = figures.nanoseconds // max(figures.requests, 1)
            endpoint.last_error = figures.last_error
        return stats
