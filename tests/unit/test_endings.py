"""A start that is given up, and a stop that does not come to its end."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from handlers.endings import Ended, NotWanted, wanted


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


HANGS = """
import asyncio, sys
from handlers.terminal import stop_on_signals

async def sleeps_on():
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue

async def main():
    stop = stop_on_signals(within_s=1.5)
    task = asyncio.create_task(sleeps_on())
    print("ready", flush=True)
    await stop.wait()
    {hang}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("hang", "told"),
    [("task.cancel(); await task", "in sleeps_on"), ("import time; time.sleep(60)", "Timeout")],
    ids=["a task", "the loop itself"],
)
def test_a_process_that_hangs_at_its_stop_says_where_and_ends(hang: str, told: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGS.format(hang=hang)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert process.returncode == 1
        assert told in process.stderr.read()
