"""Password hashing: argon2id in as many threads as cores, bounded before the queue makes everybody late."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError
from argon2.low_level import hash_secret_raw

from adapters.settings import Argon2Cost
from domain.password import normalised
from domain.refusals import Overloaded

T = TypeVar("T")
_MEMORY_KIB_MAX = 1024 * 1024
_PASSES_MAX = 64


class Hasher:
    """Hashes and verifies off the event loop.

    A cancelled caller does not stop a running hash, so permits are given back by the worker, not by the caller.
    """

    def __init__(
        self, cost: Argon2Cost, *, threads: int, waiting_max: int, counted: Callable[[], None] = lambda: None
    ) -> None:
        self._counted = counted
        self.cost = (cost.memory_kib, cost.passes, cost.lanes)
        self._threads = threads or os.cpu_count() or 1
        self._argon2 = PasswordHasher(
            time_cost=cost.passes, memory_cost=cost.memory_kib, parallelism=cost.lanes, type=Type.ID
        )
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="hash")
        self._places_max = self._threads + waiting_max
        self._places = threading.BoundedSemaphore(self._places_max)
        self._hash_s = 0.03
        self._dummy = self._argon2.hash("no user has this password: its hash is checked where there is none")

    async def hash(self, password: str) -> str:
        """The encoded hash of the normalised password; raises `Overloaded` when too many wait."""
        encoded = await self._in_thread(self._argon2.hash, normalised(password))
        self._counted()
        return encoded

    async def verify(self, encoded: str | None, password: str) -> bool:
        """Does the password match? `None` (no such user) costs the same and matches nothing."""
        matches = await self._in_thread(_matches, self._argon2, encoded or self._dummy, normalised(password))
        return matches and encoded is not None

    async def derive(self, words: Sequence[str], *, salt: bytes, cost: tuple[int, int, int]) -> list[bytes]:
        """The bare argon2id hashes of words that share a salt: whoever has one word finds it among them by one hash."""
        return await self._in_thread(_derived, words, salt, cost)

    def is_outdated(self, encoded: str) -> bool:
        """Was it made with other costs than today's?"""
        return self._argon2.check_needs_rehash(encoded)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        if not self._places.acquire(blocking=False):
            raise Overloaded(retry_after_s=max(1, round(self._places_max * self._hash_s / self._threads)))

        def timed() -> T:
            began = time.perf_counter()
            result = work(*args)
            self._hash_s += 0.05 * (time.perf_counter() - began - self._hash_s)
            return result

        future = self._pool.submit(timed)
        # Also when it is cancelled before it began: then `timed` never runs, and its place is free again.
        future.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(future)

    def hashes_per_second(self) -> float:
        """A short measurement for the start's log line; blocks its caller."""
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < 0.15:
            _matches(self._argon2, self._dummy, "wrong")
            count += 1
        return count / (time.perf_counter() - began)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def is_importable(encoded: str) -> bool:
    """Is this a hash that a sign-in can check, at a cost that we bear?"""
    try:
        cost = extract_parameters(encoded)
    except InvalidHashError:
        return False
    return cost.memory_cost <= _MEMORY_KIB_MAX and cost.time_cost <= _PASSES_MAX


def _matches(argon2: PasswordHasher, encoded: str, password: str) -> bool:
    """Bounded by our own ceiling: a stored hash names its cost, and a row may come from elsewhere."""
    try:
        cost = extract_parameters(encoded)
        if cost.memory_cost > _MEMORY_KIB_MAX or cost.time_cost > _PASSES_MAX:
            return False
        return argon2.verify(encoded, password)
    except (VerifyMismatchError, InvalidHashError, Argon2Error):
        return False


def _derived(words: Sequence[str], salt: bytes, cost: tuple[int, int, int]) -> list[bytes]:
    memory_kib, passes, lanes = cost
    return [hash_secret_raw(word.encode(), salt, passes, memory_kib, lanes, 32, Type.ID) for word in words]
