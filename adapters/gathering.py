"""Many asks of one kind made into few: what comes while an answer is on its way is asked together next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from domain.refusals import Overloaded, Stale, Unavailable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

ITEMS_MAX = 100


@dataclass(frozen=True, slots=True)
class _Asked(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]


class Gathering(Generic[Item, Answer]):
    """Calls `ask` with all items that wait, at most `ITEMS_MAX` at once, one call at a time.

    An item alone waits for one turn of the event loop; the busier it is, the more share a round trip. An item that
    cannot be answered fails by itself: the others are asked again without it. A server that is away fails them all.
    """

    def __init__(self, ask: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._ask = ask
        self._waiting: list[_Asked[Item, Answer]] = []
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        """The answer for one item; raises what `ask` raised over it."""
        asked = _Asked(item, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._asking is None or self._asking.done():
            # What is asked for many must not be logged, nor traced, as the first one's.
            self._asking = asyncio.create_task(self._ask_all(), context=Context())
        answer: Answer = await asked.answer
        return answer

    async def _ask_all(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:ITEMS_MAX], self._waiting[ITEMS_MAX:]
            wanted = [asked for asked in some if not asked.answer.done()]  # who asked may have left meanwhile
            try:
                if wanted:
                    await self._settle(wanted)
            finally:
                for asked in some:
                    asked.answer.cancel()  # of one that is answered nothing is left to cancel

    async def _settle(self, wanted: Sequence[_Asked[Item, Answer]]) -> None:
        try:
            answers = await self._ask([asked.item for asked in wanted])
        except (Unavailable, Overloaded, Stale) as error:
            _fail(wanted, error)
        except Exception as error:  # noqa: BLE001 - told to who asked
            if len(wanted) == 1:
                _fail(wanted, error)
            else:
                for asked in wanted:
                    await self._settle([asked])
        else:
            for asked, answer in zip(wanted, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)


def _fail(wanted: Sequence[_Asked[Item, Answer]], error: Exception) -> None:
    for asked in wanted:
        if not asked.answer.done():
            asked.answer.set_exception(error)
