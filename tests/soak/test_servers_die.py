"""Each server is killed and put to sleep under load, one after the other: how long until all is whole again."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median

import pytest
import pytest_asyncio

from tests.faults.house import SERVERS, House
from tests.faults.ledger import until_finished
from tests.faults.people import UNVERIFIED
from tests.faults.rounds import MAILS_AT_ONCE, Callers, require_kept
from tests.gateway import database, new_email

SEEDS = [int(seed) for seed in os.environ.get("SEEDS", "1 2 3 4 5 6 7 8 9 10").split()]
AWAY_S = 2.0
WHOLE_S_MAX = 20.0
TOOK: dict[str, list[float]] = {}

pytestmark = pytest.mark.soak


@pytest_asyncio.fixture
async def house(_house: House) -> AsyncIterator[House]:
    """With the streams of the seed before: `events verify` looks at all there is."""
    yield _house
    await _house.heal()


@asynccontextmanager
async def befallen(house: House, who: str, how: str) -> AsyncIterator[None]:
    """It is dead or asleep while the block lasts. The mail server lives in this process, and is played."""
    if who == "mail":
        async with house.silent_mail() if how == "SIGSTOP" else house.without_mail():
            yield
    elif how == "SIGSTOP":
        with house.frozen(who):
            yield
    else:
        await house.kill(who)
        try:
            yield
        finally:
            await house.bring_back(who)


async def whole_again_s(house: House, callers: Callers) -> float:
    """Seconds until a change that is begun now is acknowledged, announced and dealt with by every group."""
    began = time.monotonic()
    user_id = await callers.registered(new_email())
    await until_finished(house.ready, [user_id], within_s=60)
    return time.monotonic() - began


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
async def test_each_server_dies_and_sleeps_and_nothing_acknowledged_is_lost(house: House, seed: int) -> None:
    faults = [(who, how) for who in (*SERVERS, "mail") for how in ("SIGKILL", "SIGSTOP")]
    random.Random(seed).shuffle(faults)
    callers = Callers(house, seed)
    try:
        async with house.run(**UNVERIFIED, USER_SERVICE_DELIVERY_PAUSES="0.2 0.5 1 2 4 8 16") as run:
            users = await callers.sign_up()
            async with asyncio.TaskGroup() as calling:
                for number, user in enumerate(users):
                    calling.create_task(callers.refresh(user) if number % 3 == 0 else callers.write(user))
                calling.create_task(callers.register())
                for who, how in faults:
                    async with befallen(house, who, how):
                        await asyncio.sleep(AWAY_S)
                    took = await whole_again_s(house, callers)
                    TOOK.setdefault(f"{who} {how}", []).append(took)
                    assert took < WHOLE_S_MAX, (who, how)
                callers.stop.set()
            everyone = callers.ledger.user_ids
            await until_finished(house.ready, everyone.values(), within_s=60)
            await require_clean(house)
            assert not run.has_ended
    finally:
        await callers.close()
    await require_kept(house, callers, twice_max=MAILS_AT_ONCE * len(faults))
    async with database(house.ready) as rows:
        assert not await rows.fetchval("SELECT count(*) FROM dead_letters WHERE user_id = ANY($1)", everyone.values())
    acknowledged = sum(len(changes.acknowledged) for changes in callers.changes)
    print(f"\nseed {seed}: {len(everyone)} registered, {acknowledged} changed, {callers.unanswered} asked again")
    print(", ".join(f"{name} {median(took):.1f} ({max(took):.1f})" for name, took in sorted(TOOK.items())), "s")


async def require_clean(house: House) -> None:
    """What the operator's own commands say of it."""
    for words in (("events", "verify"), ("audit", "verify")):
        code, said, err = await house.command(*words, "--json")
        assert code == 0, said + err
