"""The link to one server cut, slow or dead while the server lives: right answers or refusals in time, and no loss."""

import asyncio
from collections.abc import Callable

import pytest
from nats.errors import Error as NatsError

from tests.faults.house import House
from tests.faults.late import late_registration, require_dropped
from tests.faults.people import BACK_S_MAX, UNVERIFIED, People, answering_after_s
from tests.faults.proxy import proxy_to
from tests.faults.walk import LIMITED, SLOWER_S_MAX, Walk, slower, until_it_is
from tests.gateway import new_email
from tests.program import until

HALF_OPEN_S = 2.5
ROUNDS = 3


async def test_a_bad_link_to_the_database_costs_refusals_in_time_and_nothing_else(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    async with (
        proxy_to(house.at.database_port) as proxy,
        house.run(**UNVERIFIED, DATABASE_URL=proxy.url(house.at.database_url)) as run,
        house.gateway() as client,
    ):
        people = People(client, deadline_s=1.5)
        async with people.at_work(8):
            await people.until_answered(50, within_s=20)
            proxy.delay_s = 0.02
            await people.until_answered(50, within_s=20)
            await proxy.heal()
            await proxy.cut()
            back_s = {"cut": await people.until_answered(50, within_s=20)}
            proxy.half_open()
            await asyncio.sleep(HALF_OPEN_S)
            await proxy.heal()
            back_s["half-open"] = await people.until_answered(50, within_s=20)
            proxy.half_open()
            await asyncio.sleep(HALF_OPEN_S)
            await proxy.cut()  # what stands between has forgotten the links
            await proxy.heal()
            back_s["forgotten"] = await people.until_answered(50, within_s=20)
        counts = await people.require_kept(house)
        assert not run.has_ended
        assert not run.lines("request failed")
    record_testsuite_property("bad link to the database: answers", dict(counts))
    record_testsuite_property("bad link to the database: longest wait, seconds", people.longest_s)
    record_testsuite_property("bad link to the database: back, seconds", back_s)
    assert counts["DEADLINE_EXCEEDED"]
    assert "SILENCE" not in counts
    assert max(back_s.values()) < BACK_S_MAX


async def test_a_bad_link_to_the_bus_loses_nothing_and_nothing_is_done_late(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    async with (
        proxy_to(house.at.nats_port) as proxy,
        house.run(**UNVERIFIED, NATS_URL=proxy.url(house.at.nats_worker_url)) as run,
        house.gateway() as client,
    ):
        unhurried = People(client, deadline_s=10)
        async with unhurried.at_work(6):
            await unhurried.until_answered(18, within_s=20)
            proxy.delay_s = 0.02
            await unhurried.until_answered(18, within_s=20)
        assert unhurried.codes == {"OK"}
        await proxy.heal()
        people = People(client, deadline_s=1.5)
        async with people.at_work(6):
            await people.until_answered(18, within_s=20)
            await proxy.cut()
            back_s = {"cut": await answering_after_s(house)}
            await people.until_answered(18, within_s=20)
        await unhurried.require_kept(house)
        await people.require_kept(house)

        seen = len(run.lines("nats disconnected"))
        proxy.half_open()
        async with people.at_work(0):
            await until(lambda: len(run.lines("nats disconnected")) >= seen + 2, within_s=30, what="unanswered pings")
            await proxy.heal()
            back_s["half-open"] = await answering_after_s(house)
            await people.until_answered(18, within_s=20)
        counts = await people.require_kept(house)
        assert counts["SILENCE"]

        email = new_email()
        body, headers = late_registration(email)
        proxy.half_open()
        with pytest.raises(NatsError):
            await client.nc.request("users.v1.auth.register", body, timeout=0.5, headers=headers)
        await asyncio.sleep(0.5)
        await proxy.heal()
        await require_dropped(house, run, email, headers["Request-Id"])
        assert not run.has_ended
    record_testsuite_property("bad link to the bus: answers", dict(counts))
    record_testsuite_property("bad link to the bus: back, seconds", back_s)
    assert max(back_s.values()) < BACK_S_MAX


async def test_a_bad_link_to_valkey_slows_no_operation_down(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    assert house.at.redis_url
    assert house.at.redis_port
    async with (
        proxy_to(house.at.redis_port) as proxy,
        house.run(**LIMITED, REDIS_URL=proxy.url(house.at.redis_url)),
        house.gateway() as client,
    ):
        walk = Walk(client, await client.admin())
        usual = await walk.rounds(ROUNDS)
        found: dict[str, dict[str, float]] = {}
        # The usual case, by medians: before the first time-out a request may wait for three slow answers in a row.
        for delay_s in (0.04, 0.1):
            proxy.delay_s = delay_s
            found[f"answers after {2 * delay_s:g} s"] = slower(usual, await walk.rounds(ROUNDS))
        await proxy.heal()
        proxy.half_open()
        found["half-open"] = slower(usual, await walk.rounds(ROUNDS))
        await until_it_is("degraded", client)
        await proxy.cut(refuse=True)
        found["cut"] = slower(usual, await walk.rounds(ROUNDS))
        await proxy.heal()
        await until_it_is("healthy", client)
        await walk.round()
    longest = {how: max(times.items(), key=lambda item: item[1]) for how, times in found.items()}
    record_testsuite_property("bad link to valkey: slower by, seconds", longest)
    assert max(seconds for _, seconds in longest.values()) < SLOWER_S_MAX, found
