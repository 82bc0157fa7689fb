"""Valkey or Redis as a convenience: a short time-out, no retry, and a pause after a failure, so that a hung server
costs a request next to nothing."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import redis.asyncio as redis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from adapters.breaker import Breaker

log = structlog.get_logger()

T = TypeVar("T")
TIMEOUT_S = 0.25
PAUSE_S = 1.0
"""After a failure Redis is left alone so long; then one caller asks again while the others go on without."""


class RedisAway(Exception):
    """Redis did not answer in time, is being left alone after it did not, or is not configured."""


class Redis:
    """One client for all uses. redis-py would retry writes after a time-out and count twice, so it may not retry."""

    def __init__(self, url: str | None) -> None:
        self._client = None if url is None else _client(url)
        self._scripts: dict[str, AsyncScript] = {}
        self.breaker = Breaker(failures_max=1, pause_s=PAUSE_S)

    @property
    def is_configured(self) -> bool:
        return self._client is not None

    @property
    def is_away(self) -> bool:
        return self._client is None or self.breaker.state != "closed"

    async def ping(self) -> None:
        """Ask now, pause or not; raises `RedisAway`."""
        if self._client is None:
            raise RedisAway
        await self._ask(self._client.ping())

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> list[bytes]:
        """Run a script atomically; raises `RedisAway`. The server keeps it under its hash after the first run."""
        client = self._connected()
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = client.register_script(script)
        result: list[bytes] = await self._ask(known(list(keys), list(args)))
        return result

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = await self._ask(self._connected().mget(list(keys)))  # type: ignore[arg-type]
        return values

    async def increment(self, key: str) -> None:
        await self._ask(self._connected().incr(key))

    def _connected(self) -> redis.Redis:
        if self._client is None or not self.breaker.admits():
            raise RedisAway
        return self._client

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                result = await answer
        except (RedisError, OSError, TimeoutError) as error:
            if self.breaker.failed():
                log.warning("redis is not available; going on without", error=type(error).__name__)
            raise RedisAway from error
        if self.breaker.succeeded():
            log.info("redis answers again")
        return result

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def _client(url: str) -> redis.Redis:
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=16,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return redis.Redis.from_pool(pool)  # its `aclose` closes the connections too
