"""Rate limits on a real server: exact under concurrency, all windows or none, and kept in the process without it."""

import asyncio
import time
from dataclasses import replace
from uuid import uuid4

import pytest
import redis.asyncio as raw_redis

from adapters.embedded import EmbeddedServers
from adapters.limits import LimitReached, Limits, Reservation, Window
from adapters.redis import Redis


def _window(tries_max: int, window_s: int = 60, name: str = "auth:login") -> Window:
    return Window(name, uuid4().hex, tries_max, window_s)


async def _try(limits: Limits, *windows: Window) -> Reservation | None:
    try:
        return await limits.reserve(windows)
    except LimitReached:
        return None


async def _allowed(limits: Limits, tries: int, *windows: Window) -> int:
    """How many of so many tries at once are let through; a bounded number of them is on its way."""
    places = asyncio.Semaphore(40)

    async def one() -> Reservation | None:
        async with places:
            return await _try(limits, *windows)

    return sum(made is not None for made in await asyncio.gather(*(one() for _ in range(tries))))


@pytest.fixture
def limits(redis: Redis) -> Limits:
    return Limits(redis, enabled=True)


@pytest.fixture
def limits_alone() -> Limits:
    return Limits(Redis(None), enabled=True)


async def test_of_many_at_once_exactly_so_many_pass(limits: Limits, servers: EmbeddedServers) -> None:
    window = _window(37)
    other = Limits(Redis(servers.addresses.redis_url), enabled=True)
    passed = await asyncio.gather(_allowed(limits, 100, window), _allowed(other, 100, window))
    assert sum(passed) == 37
    assert await _allowed(limits, 5, window) == 0
    await other._redis.close()


async def test_without_a_server_exactly_so_many_pass(limits_alone: Limits) -> None:
    window = _window(37)
    assert await _allowed(limits_alone, 200, window) == 37


async def test_a_window_slides(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        window = _window(2, window_s=2)
        assert await _allowed(tried, 5, window) == 2
        async with asyncio.timeout(10):
            while True:
                if await _try(tried, window):
                    break
                await asyncio.sleep(0.05)


async def test_a_full_window_leaves_the_others_as_they_were(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        narrow, wide = _window(1), _window(3, name="auth:login:source")
        assert await _try(tried, narrow, wide)
        for _ in range(5):
            with pytest.raises(LimitReached) as caught:
                await tried.reserve((wide, narrow))
            assert caught.value.limit == "auth:login"
        left = await tried.reserve((wide,))
        assert left.remaining == 1


async def test_what_is_given_back_does_not_count(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        windows = (_window(2), _window(5))
        for _ in range(10):
            await tried.give_back(await tried.reserve(windows))
        assert await _allowed(tried, 10, *windows) == 2


async def test_giving_back_twice_gives_one(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        window = _window(2)
        first = await tried.reserve((window,))
        await tried.reserve((window,))
        await tried.give_back(first)
        await tried.give_back(first)
        assert await _allowed(tried, 5, window) == 1


async def test_nothing_stays_for_ever(limits: Limits, servers: EmbeddedServers) -> None:
    window, began = _window(2, window_s=30), time.monotonic()
    await limits.reserve((window,))
    assert servers.addresses.redis_url is not None
    async with raw_redis.Redis.from_url(servers.addresses.redis_url) as client:
        left_ms = await client.pttl(window.key)
        assert 30_000 - (time.monotonic() - began) * 1000 - 1 <= left_ms <= 30_000
        await limits.reserve((window,))
        await _try(limits, window)
        assert await client.zcard(window.key) == 2


async def test_headers_are_of_the_tightest_window(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        narrow, wide = _window(3), _window(50)
        began = time.monotonic()
        seen = await tried.reserve((wide, narrow))
        headers, passed_s = dict(seen.headers), time.monotonic() - began
        assert 60 - passed_s <= int(headers.pop("RateLimit-Reset")) <= 60
        assert headers == {"RateLimit-Limit": "3", "RateLimit-Remaining": "2"}
        await tried.reserve((wide, narrow))
        await tried.reserve((wide, narrow))
        with pytest.raises(LimitReached) as caught:
            await tried.reserve((wide, narrow))
        headers = dict(caught.value.headers)
        assert int(headers.pop("RateLimit-Reset")) == caught.value.retry_after_s
        assert headers == {"RateLimit-Limit": "3", "RateLimit-Remaining": "0"}
        assert 60 - (time.monotonic() - began) <= caught.value.retry_after_s <= 60


async def test_switched_off_nothing_is_counted(redis: Redis) -> None:
    off, window = Limits(redis, enabled=False), _window(1)
    assert await _allowed(off, 10, window) == 10
    assert (await off.reserve((window,))).headers == {}
    assert (await Limits(redis, enabled=True).reserve(())).headers == {}


async def test_while_the_server_is_stopped_the_process_counts(servers: EmbeddedServers, redis: Redis) -> None:
    limits, window = Limits(redis, enabled=True), _window(20)
    await servers.stop_one("valkey")
    try:
        assert await _allowed(limits, 200, window) == 20
        assert redis.is_away
        seen = await limits.reserve((_window(3),))
        assert seen.remaining == 2
        await limits.give_back(seen)
    finally:
        await servers.start_one("valkey")
    await redis.ping()
    assert await _try(limits, window)


def _lock(tries_max: int = 2, window_s: int = 1, *, refuses: bool = True, owner: str | None = None) -> Window:
    return Window("auth:login", uuid4().hex, tries_max, window_s, locks=True, refuses=refuses, cleared_with=owner)


async def test_a_lock_lasts_its_whole_time_from_the_try_that_filled_it(limits: Limits, limits_alone: Limits) -> None:
    async def lasts(tried: Limits) -> None:
        lock = _lock(window_s=4)
        await tried.reserve((lock,))
        await asyncio.sleep(2.4)  # the first try will be out of the window long before the second
        filling = await tried.reserve((lock,))
        assert filling.filled == {"auth:login"}
        await asyncio.sleep(2.4)
        assert await _try(tried, lock) is None
        await asyncio.sleep(2)
        assert await _allowed(tried, 5, lock) == 2

    await asyncio.gather(lasts(limits), lasts(limits_alone))


async def test_a_lock_whose_last_try_was_right_is_none(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        lock = _lock(window_s=60)
        await tried.reserve((lock,))
        for _ in range(5):
            await tried.give_back(await tried.reserve((lock,)))
        assert await _try(tried, lock)
        assert await _try(tried, lock) is None


async def test_a_window_that_only_counts_fills_and_refuses_nobody(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        counting, name = _lock(3, 60, refuses=False), uuid4().hex
        pair = Window("pair", name, 9, 60)
        made = [await tried.reserve((pair, counting)) for _ in range(5)]
        assert [one.filled for one in made] == [set(), set(), {"auth:login"}, set(), set()]
        assert [one.remaining for one in made] == [8, 7, 6, 5, 4]
        assert await _try(tried, replace(counting, refuses=True)) is None


async def test_what_is_cleared_is_forgotten_in_every_window_of_its_owner(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        owner = uuid4().hex
        one, other = (_lock(window_s=60, owner=owner) for _ in range(2))
        strangers = _window(9)
        for _ in range(2):
            await tried.reserve((one, strangers))
            await tried.reserve((other,))
        assert await _try(tried, one) is None
        await tried.clear(owner, within_s=60)
        await asyncio.sleep(0.005)
        assert await _allowed(tried, 5, one) == 2
        assert await _allowed(tried, 5, other) == 2
        assert (await tried.reserve((strangers,))).remaining == 6


async def test_the_same_entry_counts_once(limits: Limits, limits_alone: Limits) -> None:
    for tried in (limits, limits_alone):
        windows = (_window(2), _window(5))
        for _ in range(4):
            await tried.reserve(windows, entry="the first event")
        await tried.reserve(windows, entry="the second event")
        await tried.reserve(windows, entry="the first event")
        with pytest.raises(LimitReached):
            await tried.reserve(windows, entry="the third event")
