"""Password hashing: bounded before it queues, never stopped half way, and as slow for who does not exist."""

import asyncio
import threading
import time
from collections.abc import Iterator
from statistics import median

import pytest

from adapters import hashing
from adapters.hashing import Hasher
from adapters.settings import Argon2Cost
from domain.refusals import Overloaded
from tests.program import until

CHEAP = Argon2Cost(memory_kib=8, passes=1, lanes=1)
REAL = Argon2Cost(memory_kib=19456, passes=2, lanes=1)
HUGE = "$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43
ENDLESS = "$argon2id$v=19$m=8,t=4294967295,p=1$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43


class Gate:
    """Work that takes as long as the test wants."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.began = threading.Semaphore(0)

    def work(self, *_: object) -> bool:
        self.began.release()
        assert self.open.wait(20)
        return True


@pytest.fixture
def hasher() -> Iterator[Hasher]:
    made = Hasher(CHEAP, threads=2, waiting_max=3)
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(hashing, "_matches", made.work)
    yield made
    made.open.set()


def _free(hasher: Hasher) -> int:
    return hasher._places._value


async def test_a_password_matches_its_own_hash(hasher: Hasher) -> None:
    encoded = await hasher.hash("open sésame")
    assert encoded.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert await hasher.hash("open sésame") != encoded
    assert await hasher.verify(encoded, "open sésame")
    assert await hasher.verify(encoded, "open se\u0301same")
    for other in ("open sesame", "Open sésame", "open sésame ", "", "x" * 1024):
        assert not await hasher.verify(encoded, other)
    assert "sésame" not in encoded


async def test_past_the_queue_it_is_refused_at_once(hasher: Hasher, gate: Gate) -> None:
    waiting = [asyncio.create_task(hasher.verify(None, "x")) for _ in range(5)]
    await until(lambda: _free(hasher) == 0, within_s=10, what="the queue to be full")
    for _ in range(20):
        with pytest.raises(Overloaded) as caught:
            await hasher.verify(None, "x")
        assert caught.value.retry_after_s >= 1
    gate.open.set()
    assert await asyncio.gather(*waiting) == [False] * 5
    assert await hasher.verify(None, "x") is False
    await until(lambda: _free(hasher) == 5, within_s=10, what="all places")


async def test_who_goes_away_gives_the_place_back(hasher: Hasher, gate: Gate) -> None:
    running = [asyncio.create_task(hasher.verify(None, "x")) for _ in range(2)]
    for _ in running:
        assert await asyncio.to_thread(gate.began.acquire, timeout=10)
    for _ in range(100):
        waiting = [asyncio.create_task(hasher.verify(None, "x")) for _ in range(3)]
        await asyncio.sleep(0)
        assert _free(hasher) == 0
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*waiting, return_exceptions=True)
        )
        await until(lambda: _free(hasher) == 3, within_s=10, what="the places of who waited")
    gate.open.set()
    await asyncio.gather(*running)
    await until(lambda: _free(hasher) == 5, within_s=10, what="all places")


async def test_a_hash_that_runs_keeps_its_place_though_nobody_waits(hasher: Hasher, gate: Gate) -> None:
    running = [asyncio.create_task(hasher.verify(None, "x")) for _ in range(2)]
    for _ in running:
        assert await asyncio.to_thread(gate.began.acquire, timeout=10)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert _free(hasher) == 3
    gate.open.set()
    await until(lambda: _free(hasher) == 5, within_s=10, what="all places")


async def test_work_that_fails_gives_the_place_back(hasher: Hasher, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise MemoryError

    monkeypatch.setattr(hashing, "_matches", fail)
    for _ in range(20):
        with pytest.raises(MemoryError):
            await hasher.verify(None, "x")
    await until(lambda: _free(hasher) == 5, within_s=10, what="all places")


async def test_who_does_not_exist_costs_the_same() -> None:
    hasher = Hasher(REAL, threads=1, waiting_max=3)
    encoded = await hasher.hash("the right one")
    took: dict[str | None, list[float]] = {encoded: [], None: [], "!": []}
    for _ in range(9):
        for known, seconds in took.items():
            began = time.thread_time()
            assert not hashing._matches(known, hasher._dummy, "a wrong one")
            seconds.append(time.thread_time() - began)
    known_s, unknown_s, without_password_s = (median(seconds) for seconds in took.values())
    assert unknown_s == pytest.approx(known_s, rel=0.5)
    assert without_password_s == pytest.approx(known_s, rel=0.5)
    assert not await hasher.verify(None, "no user has this password: its hash is checked where there is none")
    hasher.close()


async def test_other_costs_than_todays_are_outdated(hasher: Hasher) -> None:
    encoded = await hasher.hash("x")
    assert not hasher.is_outdated(encoded)
    for cost in ({"memory_kib": 16}, {"passes": 2}, {"lanes": 2, "memory_kib": 16}):
        other = Hasher(CHEAP.model_copy(update=cost), threads=1, waiting_max=1)
        assert other.is_outdated(encoded)
        assert await other.verify(encoded, "x")
        other.close()


@pytest.mark.parametrize(
    "encoded", [HUGE, ENDLESS, "", "x", "$argon2id$", "$2b$12$" + "a" * 53, "$argon2id$v=19$m=8,t=1,p=1$!$!", "pass"]
)
async def test_a_stored_hash_that_is_none_of_ours_matches_nothing(hasher: Hasher, encoded: str) -> None:
    async with asyncio.timeout(5):
        assert not await hasher.verify(encoded or "$", "pass")


async def test_the_loop_goes_on_while_hashing() -> None:
    hasher = Hasher(REAL, threads=1, waiting_max=3)
    hashing_now = asyncio.create_task(hasher.hash("x"))
    turns = 0
    while not hashing_now.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert hasher.hashes_per_second() > 0
    hasher.close()
