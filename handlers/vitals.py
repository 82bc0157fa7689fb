"""How the service is: probes of everything it depends on, each bounded, and the HTTP pages that show them."""

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from nats.aio.client import Client
from nats.errors import Error as NatsError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from adapters.postgres import Database
from adapters.redis import Redis, RedisAway
from adapters.settings import Settings
from adapters.telemetry import release
from contracts.health import Check, Health
from domain.refusals import Overloaded, Stale, Unavailable

PROBE_S = 0.2
SILENT_S = 5.0
"""So long a connection may wait with a request, and at most twice as long."""
BUSY_LOOKS = 6
"""So many times as long may an answer take, with its reader's time."""
_DISK_FREE_MIN = 0.05
_MEMORY_FREE_MIN = 0.05
_STARTED = time.monotonic()


class Vitals:
    """Asks everything at once. PostgreSQL and NATS are required; without the rest the service is degraded."""

    def __init__(self, settings: Settings, database: Database, client: Client, redis: Redis) -> None:
        self._settings = settings
        self._database = database
        self._client = client
        self._redis = redis

    async def check(self) -> Health:
        """How everything is now; takes 200 ms at most for each, and all are asked together."""
        checks = await asyncio.gather(
            _probe("database", self._database.probe, required=True),
            _probe("nats", self._ask_nats, required=True),
            _probe("redis", self._ask_redis, required=False),
            _probe("memory", _memory, required=False),
            _probe("disk", _disk, required=False),
        )
        worst = next((word for word in ("unhealthy", "degraded") if any(c.status == word for c in checks)), "healthy")
        return Health.model_validate(
            {
                "status": worst,
                "checks": checks,
                "version": release(),
                "uptime": round(time.monotonic() - _STARTED, 1),
                "environment": self._settings.environment,
            }
        )

    async def _ask_nats(self) -> None:
        if not self._client.is_connected:
            raise Unavailable
        await self._client.flush(timeout=1)

    async def _ask_redis(self) -> None:
        if self._redis.is_configured:
            await self._redis.ping()


async def _probe(name: str, ask: Callable[[], Awaitable[None]], *, required: bool) -> Check:
    began = time.perf_counter()
    message, status = "ok", "healthy"
    try:
        async with asyncio.timeout(PROBE_S):
            await ask()
    except (Unavailable, Overloaded, Stale, RedisAway, NatsError, OSError, TimeoutError) as error:
        message = "no answer in time" if isinstance(error, TimeoutError) else "not available"
        status = "unhealthy" if required else "degraded"
    elapsed_ms = round((time.perf_counter() - began) * 1000, 1)
    return Check.model_validate({"name": name, "status": status, "response_time_ms": elapsed_ms, "message": message})


async def _memory() -> None:
    """Linux alone tells; elsewhere nothing is claimed."""
    figures = _meminfo()
    if figures.get("MemAvailable", 1) < _MEMORY_FREE_MIN * figures.get("MemTotal", 1):
        raise Unavailable


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(text.split()[0]) for name, _, text in (line.partition(":") for line in lines) if text.split()}


async def _disk() -> None:
    usage = shutil.disk_usage("/")
    if usage.free < _DISK_FREE_MIN * usage.total:
        raise Unavailable


def http_routes(check: Callable[[], Awaitable[Health]], registry: CollectorRegistry) -> list[BaseRoute]:
    """`/health` (always 200), `/health/ready` (200 or 503) and `/metrics`."""

    async def health(_: Request) -> Response:
        return _json(await check(), 200)

    async def ready(_: Request) -> Response:
        found = await check()
        return _json(found, 503 if found.status == "unhealthy" else 200)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health", health), Route("/health/ready", ready), Route("/metrics", metrics)]


def _json(health: Health, status: int) -> Response:
    return Response(health.model_dump_json(by_alias=True), status, media_type="application/json")


class PortTaken(Exception):
    """Somebody else listens there."""


class _Prompt(H11Protocol):
    """Whoever connects asks soon, and soon again, and takes what is answered: connections that stay silent would take
    the places of all others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(SILENT_S, self._look, (None, True), 0)

    def _look(self, before: tuple[object, bool], looks: int) -> None:
        if self.transport.is_closing():
            return
        cycle = getattr(self, "cycle", None)
        now = cycle, cycle is None or cycle.response_complete
        looks = looks + 1 if now == before else 0
        if looks >= (1 if now[1] else BUSY_LOOKS):
            self.transport.abort()
        else:
            self.loop.call_later(SILENT_S, self._look, now, looks)


class _Uvicorn(uvicorn.Server):
    """uvicorn in our loop; signals stay ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def http_server(
    routes: list[BaseRoute], *, host: str, port: int, variable: str = "HTTP_PORT", behind_proxy: bool = False
) -> AsyncIterator[int]:
    """Serve while the block lasts; yields the port, which is a free one where 0 was asked. Raises `PortTaken`.

    `behind_proxy` takes a browser's address from the proxies that uvicorn trusts (`FORWARDED_ALLOW_IPS`).
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # whoever is told the port may connect at once
    except OSError as error:
        listener.close()
        raise PortTaken(f"HTTP port {port} on {host} is taken: set {variable} to another ({error.strerror})") from error
    config = uvicorn.Config(
        Starlette(routes=routes), lifespan="off", log_config=None, access_log=False, server_header=False,
        limit_concurrency=100, timeout_graceful_shutdown=2, http=_Prompt, proxy_headers=behind_proxy,
    )  # fmt: skip
    server = _Uvicorn(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
