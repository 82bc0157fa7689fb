"""How what a process does ends: a start that is given up, loops, and work at a stop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from types import TracebackType

START_S = 30.0
"""A start takes seconds; one that hangs ends, for whoever keeps the process running to start it anew."""
CANCEL_S = 1.0
"""How long what was cancelled may still tidy up: answer its caller, or hand back its message."""
# Before Python 3.12 `wait_for`, which nats-py uses, may swallow a cancellation: what goes on is cancelled again.
_CANCELS_MAX = 5
_CANCEL_AGAIN_S = 1.0


class Ended(Exception):
    """The process cannot go on: something it needs is gone for good, or hangs. The message says what."""


class NotWanted(Exception):
    """Nobody wants any more what a block was about to do."""


@asynccontextmanager
async def wanted(what: str, *, unless: asyncio.Event, within_s: float) -> AsyncIterator[None]:
    """The block is given up as soon as the event is set, and when it takes too long.

    Raises `NotWanted` or `Ended` for it, whatever the block itself ends with then.
    """
    block, cancels = asyncio.current_task(), 0
    cause: BaseException | None = None
    assert block is not None  # noqa: S101 - this is a coroutine

    async def give_up() -> None:
        nonlocal cancels
        await asyncio.wait([waiting], timeout=within_s)
        while True:
            cancels += 1
            block.cancel()
            await asyncio.sleep(_CANCEL_AGAIN_S)

    waiting = asyncio.create_task(unless.wait())
    giving_up = asyncio.create_task(give_up())
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        by_others = isinstance(error, asyncio.CancelledError) and block.cancelling() > cancels
        if not cancels or by_others:
            raise
        cause = error
    finally:
        giving_up.cancel()
        waiting.cancel()
        for _ in range(cancels):
            block.uncancel()
    if cancels:
        if unless.is_set():
            raise NotWanted from cause
        raise Ended(f"{what} has not come to an end in {within_s:g} s") from cause


class Loops:
    """The long-lived loops of a process, ended when the block is left; one that dies ends the block."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, loop: Coroutine[None, None, None], name: str) -> None:
        self._tasks.append(self._group.create_task(loop, name=name))

    async def __aenter__(self) -> "Loops":
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for _ in range(_CANCELS_MAX):
                left = [task for task in self._tasks if not task.done()]
                for task in left:
                    task.cancel()
                if not left or not (await asyncio.wait(left, timeout=_CANCEL_AGAIN_S))[1]:
                    break
        finally:  # also where one dies of its end: the group waits for the others, and tells of what
            await self._group.__aexit__(kind, error, trace)


async def let_end(tasks: Iterable[asyncio.Task[None]], *, until: float) -> None:
    """Wait for tasks, and cancel those that have not ended by then, in the event loop's clock."""
    late = set(tasks)
    if late:
        _, late = await asyncio.wait(late, timeout=max(0.0, until - asyncio.get_running_loop().time()))
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=CANCEL_S)
