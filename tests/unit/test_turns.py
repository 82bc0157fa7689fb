"""One at a time for each key, and no key kept for longer than its block."""

import asyncio
from collections import Counter

import pytest

from adapters.turns import Turns


async def test_blocks_of_one_key_follow_each_other_and_others_run_beside_them() -> None:
    turns, at_once, most = Turns(), Counter[str](), Counter[str]()

    async def work(key: str) -> None:
        async with turns.of(key):
            at_once[key] += 1
            most[key] = max(most[key], at_once[key])
            most["all"] = max(most["all"], at_once.total())
            await asyncio.sleep(0)
            at_once[key] -= 1

    await asyncio.gather(*(work(key) for key in "aaaabbbb"))
    assert most == {"a": 1, "b": 1, "all": 2}
    assert not turns._in_hand


async def test_a_block_that_fails_or_is_cancelled_lets_the_next_in() -> None:
    turns, entered = Turns(), asyncio.Event()

    async def stay() -> None:
        async with turns.of("key"):
            entered.set()
            await asyncio.Event().wait()

    staying = asyncio.create_task(stay())
    await entered.wait()
    staying.cancel()
    with pytest.raises(ValueError, match="broken"):
        async with turns.of("key"):
            raise ValueError("broken")
    async with turns.of("key"):
        assert len(turns._in_hand) == 1
    assert not turns._in_hand
