"""The link to one server cut, slow or dead while the server lives: right answers or refusals in time, and no loss."""

import asyncio
from collections.abc import Callable

from tests.faults.house import House
from tests.faults.people import UNVERIFIED, People
from tests.faults.proxy import proxy_to

HALF_OPEN_S = 2.5
BACK_S_MAX = 9.0  # 3 s are promised; this machine is shared


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
