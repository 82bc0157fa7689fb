"""A start that is given up, and a stop that does not come to its end."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import cast

import pytest
from nats.aio.client import Client

from adapters.cache import LocalCache, SharedCache
from handlers.app import ended_in_order
from handlers.endings import Ended, Loops, NotWanted, wanted
from handlers.freshness import Freshness


async def test_a_block_that_ends_in_time_is_left_alone() -> None:
    stop = asyncio.Event()
    async with wanted("it", unless=stop, within_s=5):
        await asyncio.sleep(0)
    stop.set()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("before", [True, False])
async def test_a_block_is_given_up_when_nobody_wants_it(before: bool) -> None:
    stop = asyncio.Event()
    if before:
        stop.set()
    else:
        asyncio.get_running_loop().call_later(0.05, stop.set)
    began = time.monotonic()
    with pytest.raises(NotWanted):
        async with wanted("it", unless=stop, within_s=5):
            await asyncio.sleep(5)
    assert time.monotonic() - began < 2


async def _swallowing_twice() -> None:
    for _ in range(2):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(5)
    await asyncio.sleep(5)


async def _cut() -> None:
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError as error:
        raise ConnectionError from error


@pytest.mark.parametrize("block", [_swallowing_twice, _cut])
async def test_a_block_is_given_up_whatever_it_does_about_it(block: Callable[[], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    stop.set()
    began = time.monotonic()
    with pytest.raises(NotWanted):
        async with wanted("it", unless=stop, within_s=5):
            await block()
    assert time.monotonic() - began < 4
    await asyncio.sleep(0)  # nothing of it is left over


async def test_who_is_ended_by_others_ends() -> None:
    async def block() -> None:
        async with wanted("it", unless=asyncio.Event(), within_s=5):
            await asyncio.sleep(5)

    task = asyncio.create_task(block())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_block_that_takes_too_long_is_named() -> None:
    with pytest.raises(Ended, match=r"^the start has not come to an end in 0\.05 s$"):
        async with wanted("the start", unless=asyncio.Event(), within_s=0.05):
            await asyncio.sleep(5)


async def test_what_times_out_within_the_block_is_not_the_block() -> None:
    with pytest.raises(TimeoutError, match="a server"):
        async with wanted("the start", unless=asyncio.Event(), within_s=5):
            raise TimeoutError("a server")


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _dies_of_its_end() -> None:
    try:
        await _for_ever()
    finally:
        raise ConnectionError("gone")


async def _with_a_loop_that_dies_of_its_end(other: Coroutine[None, None, None]) -> None:
    async with Loops() as loops:
        loops.start(_dies_of_its_end(), "dies")
        loops.start(other, "other")
        await asyncio.sleep(0)


async def test_a_loop_that_dies_of_its_end_is_told_when_the_others_have_ended() -> None:
    ended = False

    async def takes_its_time() -> None:
        nonlocal ended
        try:
            await _for_ever()
        except asyncio.CancelledError:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)
            await asyncio.to_thread(time.sleep, 0.1)
            ended = True

    with pytest.raises(ExceptionGroup) as told:
        await _with_a_loop_that_dies_of_its_end(takes_its_time())
    assert told.group_contains(ConnectionError, match="gone")
    assert ended


async def test_what_is_in_work_is_ended_in_order_also_where_a_loop_dies() -> None:
    stop, told = asyncio.Event(), list[str]()

    async def dies() -> None:
        raise ConnectionError("gone")

    async def answers_those_in_work() -> None:
        await asyncio.sleep(0.1)
        told.append("answered")

    async def serve() -> None:
        async with AsyncExitStack() as stack, ended_in_order(stop) as ends:
            loops = await stack.enter_async_context(Loops())
            ends.append(answers_those_in_work)
            loops.start(dies(), "dies")
            await _for_ever()

    with pytest.raises(ExceptionGroup) as error:
        await serve()
    assert error.group_contains(ConnectionError, match="gone")
    assert told == ["answered"]
    assert stop.is_set()


class Swallowing:
    """Stands in for a client that swallows a cancellation, once."""

    is_connected = True
    max_payload = 1024 * 1024

    def __init__(self) -> None:
        self.publishing = asyncio.Event()
        self._has_swallowed = False

    async def publish(self, *_: object, **__: object) -> None:
        self.publishing.set()
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            if self._has_swallowed:
                raise
            self._has_swallowed = True


async def test_a_beat_of_the_bus_ends_where_the_client_swallows_its_end() -> None:
    client = Swallowing()
    freshness = Freshness(
        cast(Client, client), LocalCache(), LocalCache(), cast(SharedCache, None), wake_relay=lambda: None
    )
    async with asyncio.timeout(10), Loops() as loops:
        for name, loop in freshness.loops().items():
            loops.start(loop, name)
        await client.publishing.wait()


HANGS = """
import asyncio, sys
from handlers.terminal import stop_on_signals

async def sleeps_on():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue

async def around():
    await sleeps_on()

async def main():
    stop = stop_on_signals(within_s=1.5)
    task = asyncio.create_task(around())
    print("ready", flush=True)
    {wait}
    {hang}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("wait", "hang", "told"),
    [
        ("await stop.wait()", "task.cancel(); await task", "in sleeps_on"),
        ("await stop.wait()", "import time; time.sleep(60)", "Timeout"),
        ("stop.set()", "await task", "in sleeps_on"),
    ],
    ids=["a task", "the loop itself", "without a signal"],
)
def test_a_process_that_hangs_at_its_stop_says_where_and_ends(wait: str, hang: str, told: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGS.format(wait=wait, hang=hang)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert process.returncode == 1
        assert told in process.stderr.read()
        assert process.stdout.read() == ""


def test_a_process_without_standard_error_ends_as_well() -> None:
    hangs = HANGS.format(wait="await stop.wait()", hang="await task")
    with subprocess.Popen(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, hangs], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 1
