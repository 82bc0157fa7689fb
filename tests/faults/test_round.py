"""One short round of random deaths and sleeps; `make soak` plays long ones."""

from collections.abc import Callable
from dataclasses import asdict

import pytest

from tests.faults.house import House
from tests.faults.rounds import play
from tests.faults.schedule import faults_of

SEED = 1992


@pytest.mark.timeout(180)
async def test_a_short_round_of_deaths_and_sleeps_loses_nothing(
    house: House, record_testsuite_property: Callable[[str, object], None]
) -> None:
    figures = await play(house, SEED, faults_of(SEED, every_s=1.0, count=7))
    for name, figure in asdict(figures).items():
        record_testsuite_property(f"short round: {name}", figure)
    assert figures.registered > 12
    assert figures.changed
    assert figures.refreshed
