"""Does the time of an answer tell a known address from an unknown one? A thousand tries of each, in turns, three times;
for figures that mean something, on a machine that does nothing else."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.gateway import Gateway, gateway
from tests.program import Dev
from tests.telltale import MEASURED, OPERATIONS, compare, known_addresses

TRIES = int(os.environ.get("TRIES", "1000"))
RUNS = 3
AUC_APART_MAX = 0.03


@pytest_asyncio.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with (
        Dev(tmp_path_factory.mktemp("telltale") / "data", **MEASURED) as running,
        gateway(running.ready) as found,
    ):
        yield found


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_answer_tells_nothing_by_its_time(client: Gateway, operation: str) -> None:
    known = await known_addresses(client, 100, verified=operation != "resend")
    good = 0
    for run in range(RUNS):
        verdict = await compare(client, OPERATIONS[operation], known, tries=TRIES, seed=run)
        print(f"\n{operation}: {verdict}")
        assert verdict.answers == 1
        good += verdict.medians_agree and verdict.auc_within(AUC_APART_MAX)
        if good == 2:
            return
    assert good >= 2
