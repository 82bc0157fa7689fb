"""Who is killed or put to sleep, when and for how long: drawn from a seed, so that a round can be had again."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.faults.house import SERVERS, House, Run
from tests.program import until

RUNS = {"requests": ("requests",), "relay": ("relay",), "groups": ("email", "audit", "cache", "jobs")}
VICTIMS = (*RUNS, *SERVERS)
_AGAIN_S = 0.3


@dataclass(frozen=True)
class Fault:
    """At a time of the round somebody is killed and stays away, or sleeps, for so long."""

    at_s: float
    who: str
    how: signal.Signals
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:5.1f} s  {self.how.name}  {self.who}, {self.for_s:.1f} s"


def faults_of(seed: int, *, every_s: float, victims: Sequence[str] = VICTIMS, count: int | None = None) -> list[Fault]:
    """Each of these killed once and put to sleep once, in the seed's order, or the first so many of them."""
    chance = random.Random(seed)
    pairs = [(who, how) for who in victims for how in (signal.SIGKILL, signal.SIGSTOP)]
    chance.shuffle(pairs)
    at_s = 0.0
    found = []
    for who, how in pairs[:count]:
        at_s += chance.uniform(0.4, 1.6) * every_s
        found.append(Fault(at_s, who, how, chance.uniform(0.3, 3.0)))
    return found


class Stage:
    """The runs of a round, each started again whenever it ends, and the faults that befall them and the servers."""

    def __init__(self, house: House, **env: str) -> None:
        self._house = house
        self._env = env
        self._runs: dict[str, Run] = {}
        self._away: dict[str, asyncio.Lock] = {name: asyncio.Lock() for name in VICTIMS}
        self.starts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.sleeps: Counter[str] = Counter()

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """All run, and run again, while the block lasts; once it begins, all serve."""
        keepers = [asyncio.create_task(self._keep(name), name=name) for name in RUNS]
        try:
            await self.until_all_serve()
            yield
            assert not any(keeper.done() for keeper in keepers), keepers
        finally:
            for keeper in keepers:
                async with self._away[keeper.get_name()]:  # not while it starts one
                    keeper.cancel()
            await asyncio.wait(keepers)
            running = [run for run in self._runs.values() if not run.has_ended]
            codes = await asyncio.gather(*(run.stop() for run in running))
            assert all(code in (0, -signal.SIGTERM) for code in codes), [run.log[-4000:] for run in running]

    async def until_all_serve(self) -> None:
        """Wait until each run that was started last is ready."""
        await until(
            lambda: all(name in self._runs and self._runs[name].lines("ready") for name in RUNS),
            within_s=60, what="all groups to serve",
        )  # fmt: skip

    async def suffer(self, faults: Sequence[Fault]) -> None:
        """Let them happen, each at its time; when this returns, nobody is dead or asleep any more."""
        began = asyncio.get_running_loop().time()

        async def happen(fault: Fault) -> None:
            await asyncio.sleep(began + fault.at_s - asyncio.get_running_loop().time())
            async with self._away[fault.who]:
                await (self._befall_run(fault) if fault.who in RUNS else self._befall_server(fault))

        async with asyncio.TaskGroup() as happening:
            for fault in faults:
                happening.create_task(happen(fault))

    def logged(self, message: str) -> int:
        """How many lines of the present runs say this."""
        return sum(len(run.lines(message)) for run in self._runs.values())

    async def _keep(self, name: str) -> None:
        while True:
            async with self._away[name]:
                run = self._runs[name] = self._house.run(*RUNS[name], **self._env)
                await run.launch()
                self.starts[name] += 1
            await run.process.wait()
            await asyncio.sleep(_AGAIN_S)  # it may have found a server away

    async def _befall_run(self, fault: Fault) -> None:
        run = self._runs[fault.who]
        with suppress(ProcessLookupError):  # it ended by itself, and is about to be started again
            run.send(fault.how)
        self._count(fault)
        await asyncio.sleep(fault.for_s)
        if fault.how is signal.SIGSTOP:
            with suppress(ProcessLookupError):
                run.send(signal.SIGCONT)

    async def _befall_server(self, fault: Fault) -> None:
        self._count(fault)
        if fault.how is signal.SIGSTOP:
            with self._house.frozen(fault.who):
                await asyncio.sleep(fault.for_s)
            return
        await self._house.kill(fault.who)
        await asyncio.sleep(fault.for_s)
        await self._house.bring_back(fault.who)

    def _count(self, fault: Fault) -> None:
        (self.kills if fault.how is signal.SIGKILL else self.sleeps)[fault.who] += 1
