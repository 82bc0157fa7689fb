"""Valkey stopped, frozen and back: every operation answers on, little slower, and nothing stale is shown afterwards."""

import asyncio
from collections.abc import Callable

from tests.faults.house import House
from tests.faults.walk import LIMITED, SLOWER_S_MAX, Walk, slower, until_it_is
from tests.gateway import Gateway

TOLD_S = 1.0
"""So soon every other process has been told of a change."""


async def test_every_operation_answers_without_valkey_and_with_a_hung_one(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    async with house.run(**LIMITED), house.gateway() as client:
        walk = Walk(client, await client.admin())
        usual = await walk.rounds()
        assert len(usual) == 17
        async with house.without("valkey"):
            stopped = slower(usual, await walk.rounds())
            await until_it_is("degraded", client)
        with house.frozen("valkey"):
            frozen = slower(usual, await walk.rounds())
            await until_it_is("degraded", client)
        record_testsuite_property("slower without", stopped)
        record_testsuite_property("slower with a hung one", frozen)
        assert max(stopped.values()) < SLOWER_S_MAX, stopped
        assert max(frozen.values()) < SLOWER_S_MAX, frozen
        await walk.round()


async def require_fresh(client: Gateway, access: str, user_id: str, name: str) -> None:
    """Both processes show it: the queue group gives each some of these requests."""
    for _ in range(20):
        assert (await client.call("me.get", access=access)).data["user"]["firstName"] == name
        shown = (await client.call("profile.get", access=access, userId=user_id)).data["profile"]
        assert shown["displayName"] == name


async def test_nothing_from_before_is_shown_when_valkey_is_back(house: House) -> None:
    async with house.run("requests", "cache", "relay", "email"), house.gateway() as client:
        found = await client.signed_in()
        access, user_id = found["tokens"]["accessToken"], found["user"]["id"]

        async def name(word: str) -> None:
            assert (await client.call("me.update", access=access, firstName=word)).ok
            assert (await client.call("profile.update", access=access, displayName=word)).ok

        await name("Before")
        await require_fresh(client, access, user_id, "Before")
        with house.frozen("valkey"):  # what it holds from before, it still holds afterwards
            await name("Hung")
        # A second process has an empty L1: what it shows comes from Valkey or from the rows.
        async with house.run("requests"):
            await require_fresh(client, access, user_id, "Hung")
            async with house.without("valkey"):
                await name("Stopped")
            await require_fresh(client, access, user_id, "Stopped")
            await name("After")
            await asyncio.sleep(TOLD_S)
            await require_fresh(client, access, user_id, "After")
