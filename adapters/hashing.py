"""Password hashing: argon2id in as many threads as cores, bounded before the queue makes everybody late."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.low_level import hash_secret_raw

from adapters.foreign_hashes import check_of
from adapters.settings import Argon2Cost
from domain.password import normalised
from domain.refusals import Overloaded

T = TypeVar("T")


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
        self.places_max = self._threads + waiting_max
        self._places = threading.BoundedSemaphore(self.places_max)
        self._hash_s = 0.03
        self._dummy = self._argon2.hash("no user has this password: its hash is checked where there is none")

    @property
    def places_taken(self) -> int:
        """Hashes in work or waiting, `places_max` of them at most."""
        return self.places_max - self._places._value  # noqa: SLF001 - the library counts and does not tell

    async def hash(self, password: str) -> str:
        """The encoded hash of the normalised password; raises `Overloaded` when too many wait."""
        encoded = await self._in_thread(self._argon2.hash, normalised(password))
        self._counted()
        return encoded

    async def verify(self, encoded: str | None, password: str) -> bool:
        """Does the password match? `None` (no such user) and a text that is no hash cost the same and match nothing."""
        is_right = await self._in_thread(_matches, encoded, self._dummy, password)
        return is_right and encoded is not None

    async def derive(self, words: Sequence[str], *, salt: bytes, cost: tuple[int, int, int]) -> list[bytes]:
        """The bare argon2id hashes of words that share a salt: whoever has one word finds it among them by one hash."""
        return await self._in_thread(_derived, words, salt, cost)

    def is_outdated(self, encoded: str) -> bool:
        """Was it made in another way, or with other costs than today's?"""
        return not encoded.startswith("$argon2id$") or self._argon2.check_needs_rehash(encoded)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        if not self._places.acquire(blocking=False):
            raise Overloaded(retry_after_s=max(1, round(self.places_max * self._hash_s / self._threads)))

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
            _matches(self._dummy, self._dummy, "wrong")
            count += 1
        return count / (time.perf_counter() - began)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _matches(encoded: str | None, dummy: str, password: str) -> bool:
    """A hash from elsewhere may be of the password as it was typed: that is tried too where it is another text, for
    every hash alike, so that the time says nothing of its kind."""
    own = None if encoded is None else check_of(encoded)
    check = own or check_of(dummy)
    if check is None:
        return False
    forms = dict.fromkeys((normalised(password), password))
    is_right = any(check(form.encode()) for form in forms)
    return is_right and own is not None


def _derived(words: Sequence[str], salt: bytes, cost: tuple[int, int, int]) -> list[bytes]:
    memory_kib, passes, lanes = cost
    return [hash_secret_raw(word.encode(), salt, passes, memory_kib, lanes, 32, Type.ID) for word in words]
