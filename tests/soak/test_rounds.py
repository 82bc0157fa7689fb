"""Ten rounds of random deaths and sleeps of everything; `make soak` plays them, `make test` does not."""

import os
from dataclasses import asdict

import pytest

from tests.faults.house import House
from tests.faults.rounds import play
from tests.faults.schedule import faults_of

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "1 2 3 4 5 6 7 8 9 10").split()]
EVERY_S = 2.0


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_round_of_deaths_and_sleeps_loses_nothing(house: House, seed: int) -> None:
    faults = faults_of(seed, every_s=EVERY_S)
    print(f"\nround of seed {seed}", *faults, sep="\n")
    figures = await play(house, seed, faults)
    print(", ".join(f"{name} {figure}" for name, figure in asdict(figures).items()))
