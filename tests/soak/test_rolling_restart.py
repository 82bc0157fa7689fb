"""Three processes are replaced one after the other under load: nobody waits in vain, nothing is lost."""

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout

from tests.faults.house import House, Run
from tests.faults.ledger import Changes, require_changes, require_last_states
from tests.gateway import Gateway, stored_events

A_SECOND = float(os.environ.get("RATE", "200"))
TURNS = int(os.environ.get("TURNS", "2"))
"""How often each of the three is replaced."""
USERS = 20
WRITES_ONE_IN = 10
ANSWER_S = 5.0
AGAIN_MAX = 50
MAY_RETRY = {"OVERLOADED", "SERVICE_UNAVAILABLE"}

pytestmark = pytest.mark.soak


@dataclass
class Load:
    """Nine reads to one profile change, begun at a fixed pace however long the answers take."""

    client: Gateway
    users: list[dict[str, Any]]
    changes: list[Changes]
    asked: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)

    async def run(self, stop: asyncio.Event) -> None:
        turns = [asyncio.Lock() for _ in self.users]
        began, tick = time.perf_counter(), itertools.count(1)
        async with asyncio.TaskGroup() as asking:
            while not stop.is_set():
                number = next(tick)
                who = random.randrange(len(self.users))
                asking.create_task(self._write(who, turns[who]) if number % WRITES_ONE_IN == 0 else self._read(who))
                await asyncio.sleep(max(0.0, began + number / A_SECOND - time.perf_counter()))

    async def _read(self, who: int) -> None:
        await self._ask("me.get", who, {})

    async def _write(self, who: int, turn: asyncio.Lock) -> None:
        """A user's changes one after the other: their order is what is checked."""
        async with turn:
            bio = f"change-{uuid4()}"
            self.changes[who].unanswered.add(bio)
            if await self._ask("profile.update", who, {"Idempotency-Key": f"key-of-{bio}"}, bio=bio):
                self.changes[who].acknowledged.append(bio)
                self.changes[who].unanswered.discard(bio)

    async def _ask(self, operation: str, who: int, headers: dict[str, str], **body: object) -> bool:
        self.asked[operation] += 1
        began, access = time.perf_counter(), self.users[who]["tokens"]["accessToken"]
        for _ in range(AGAIN_MAX):
            try:
                reply = await self.client.call(operation, access=access, headers=headers, timeout=ANSWER_S, **body)
            except NoRespondersError:
                why = "nobody there"
            except (NatsTimeout, TimeoutError):
                self.unanswered.append(operation)
                return False
            else:
                if reply.ok:
                    self.took_ms.append((time.perf_counter() - began) * 1000)
                    return True
                why = reply.code
                assert why in MAY_RETRY, reply.body
            self.again[why] += 1
            await asyncio.sleep(0.05)
        raise AssertionError(f"{operation} was refused {AGAIN_MAX} times")


@pytest.mark.timeout(600)
async def test_a_rolling_restart_of_three_leaves_nobody_waiting_and_loses_nothing(house: House) -> None:
    async with house.gateway() as client:
        runs = [house.run() for _ in range(3)]
        for run in runs:
            await run.start()
        try:
            users = [await client.signed_in() for _ in range(USERS)]
            load = Load(client, users, [Changes(UUID(user["user"]["id"])) for user in users])
            stop = asyncio.Event()
            asking = asyncio.create_task(load.run(stop))
            began = time.perf_counter()
            await asyncio.sleep(3)
            took = [await replaced(house, runs, number % 3) for number in range(3 * TURNS)]
            await asyncio.sleep(3)
            stop.set()
            await asking
            seconds = time.perf_counter() - began
        finally:
            for run in runs:
                await run.stop()
    asked, slowest = sum(load.asked.values()), sorted(load.took_ms)
    print(
        f"\n{asked} requests in {seconds:.0f} s, {asked / seconds:.0f} a second, "
        f"{load.asked['profile.update']} of them changes; "
        f"{len(took)} restarts of {min(took):.1f} to {max(took):.1f} s; asked again: {dict(load.again) or 'none'}; "
        f"ms: median {slowest[len(slowest) // 2]:.1f}, p99 {slowest[len(slowest) * 99 // 100]:.0f}, "
        f"worst {slowest[-1]:.0f}; unanswered: {len(load.unanswered)}"
    )
    assert not load.unanswered
    await require_no_change_lost(house, load.changes)


async def replaced(house: House, runs: list[Run], number: int) -> float:
    """Stop one with SIGTERM, then start another in its place; seconds until that one serves."""
    began = time.perf_counter()
    assert await runs[number].stop() == 0, runs[number].log[-3000:]
    runs[number] = house.run()
    await runs[number].start()
    return time.perf_counter() - began


async def require_no_change_lost(house: House, all_changes: list[Changes]) -> None:
    """Each acknowledged change stands once, in its user's order, on the stream and as the last state of the row."""
    wanted = {changes.user_id: changes for changes in all_changes}
    by_user: dict[UUID, list[dict[str, Any]]] = {user_id: [] for user_id in wanted}

    async def all_there() -> bool:
        for events in by_user.values():
            events.clear()
        for event in await stored_events(house.ready):
            by_user.get(UUID(event["aggregateId"]), []).append(event)
        told = {e["data"]["changed"]["bio"] for es in by_user.values() for e in es if e["type"] == "ProfileUpdated"}
        return all(set(changes.acknowledged) <= told for changes in all_changes)

    async with asyncio.timeout(60), house.run("relay"):
        while not await all_there():
            await asyncio.sleep(0.5)
    for user_id, changes in wanted.items():
        require_changes(by_user[user_id], changes)
    await require_last_states(house.ready, by_user, all_changes)
