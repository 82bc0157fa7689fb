"""Asks that are made together, and a failure that stays with the one who caused it."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from adapters.gathering import ITEMS_MAX, Gathering
from domain.refusals import Unavailable

_REQUEST: ContextVar[str] = ContextVar("request", default="nobody's")


class Doubler:
    """Doubles numbers, writes down what was asked together, and cannot do 13."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_away = False

    async def __call__(self, numbers: Sequence[int]) -> Sequence[int]:
        self.asked.append(list(numbers))
        await self.may_answer.wait()
        if self.is_away:
            raise Unavailable
        if 13 in numbers:
            raise ValueError("unlucky")
        return [number * 2 for number in numbers]


async def test_what_is_asked_in_one_turn_is_one_ask() -> None:
    doubler = Doubler()
    double = Gathering(doubler)
    assert await asyncio.gather(*(double(number) for number in range(5))) == [0, 2, 4, 6, 8]
    assert doubler.asked == [[0, 1, 2, 3, 4]]


async def test_what_comes_while_an_answer_is_on_its_way_is_asked_together_next() -> None:
    doubler = Doubler()
    doubler.may_answer.clear()
    double = Gathering(doubler)
    first = asyncio.create_task(double(1))
    while not doubler.asked:
        await asyncio.sleep(0)
    later = [asyncio.create_task(double(number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    doubler.may_answer.set()
    assert await asyncio.gather(first, *later) == [2, 4, 6, 8]
    assert doubler.asked == [[1], [2, 3, 4]]


async def test_an_ask_has_a_bound() -> None:
    doubler = Doubler()
    double = Gathering(doubler)
    numbers = range(100, 107 + 2 * ITEMS_MAX)
    assert await asyncio.gather(*map(double, numbers)) == [2 * number for number in numbers]
    assert [len(asked) for asked in doubler.asked] == [ITEMS_MAX, ITEMS_MAX, 7]


async def test_an_item_that_cannot_be_answered_fails_alone() -> None:
    double = Gathering(Doubler())
    answers = await asyncio.gather(*(double(number) for number in (12, 13, 14)), return_exceptions=True)
    assert (answers[0], answers[2]) == (24, 28)
    assert isinstance(answers[1], ValueError)


async def test_a_server_that_is_away_is_asked_once_and_fails_all() -> None:
    doubler = Doubler()
    doubler.is_away = True
    answers = await asyncio.gather(*map(Gathering(doubler), (1, 2, 3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert len(doubler.asked) == 1


async def test_who_leaves_is_not_waited_for_and_takes_nobody_along() -> None:
    doubler = Doubler()
    double = Gathering(doubler)
    leaving, staying = asyncio.create_task(double(1)), asyncio.create_task(double(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 4
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await double(3) == 6


async def test_what_is_asked_for_many_is_no_part_of_the_first_ones_request() -> None:
    async def whose(numbers: Sequence[int]) -> Sequence[str]:
        return [_REQUEST.get() for _ in numbers]

    gathering = Gathering(whose)
    _REQUEST.set("mine")
    assert await gathering(1) == "nobody's"
