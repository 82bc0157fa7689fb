"""A closed loop of callers against a running service, and what it cost: rate, latencies, processor time."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
from nats.aio.client import Client

SETTLE_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the contract, before it is sent."""

    operation: str
    body: Mapping[str, object]
    access: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """`request(caller)` makes a caller's next request, or None when its stock is used up; `keep` sees each reply."""

    name: str
    request: Callable[[int], Request | None]
    keep: Callable[[int, Any], None] = lambda _, __: None


@dataclass(slots=True)
class Result:
    """What a scenario measured."""

    name: str
    took_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    service_ms: float = 0.0
    servers_ms: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.latencies_ms)

    @property
    def per_second(self) -> float:
        return self.requests / self.took_s

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


async def send(client: Client, request: Request) -> dict[str, Any]:
    """Ask as a gateway does; the reply's envelope."""
    headers = {"Client-Ip": "192.0.2.1", "User-Agent": "benchmarks"}
    if request.access:
        headers["Authorization"] = f"Bearer {request.access}"
    if request.device:
        headers["Device-Token"] = request.device
    body = json.dumps(request.body).encode()
    reply = await client.request(f"users.v1.{request.operation}", body, timeout=30, headers=headers)
    envelope: dict[str, Any] = json.loads(reply.data)
    return envelope


async def measure(client: Client, tree: "Tree", scenario: Scenario, *, callers: int, seconds: float) -> Result:
    """Every caller asks again as soon as it is answered. Processor time counts until the last effect is done."""
    result = Result(scenario.name)
    await tree.settled()
    before = tree.cpu_s()
    began = time.perf_counter()

    async def caller(number: int) -> None:
        while time.perf_counter() - began < seconds:
            request = scenario.request(number)
            if request is None:
                return
            asked = time.perf_counter()
            envelope = await send(client, request)
            result.latencies_ms.append((time.perf_counter() - asked) * 1000)
            if envelope["success"]:
                scenario.keep(number, envelope["data"])
            else:
                code = envelope["error"]["code"]
                result.refused[code] = result.refused.get(code, 0) + 1

    await asyncio.gather(*(caller(number) for number in range(callers)))
    result.took_s = time.perf_counter() - began
    await tree.settled()
    after = tree.cpu_s()
    if result.requests:
        result.service_ms, result.servers_ms = (
            (end - start) * 1000 / result.requests for start, end in zip(before, after, strict=True)
        )
    return result


class Tree:
    """The processes of a `user-service dev`: the service, and the servers that it started."""

    def __init__(self, pid: int) -> None:
        self._service = psutil.Process(pid)

    def cpu_s(self) -> tuple[float, float]:
        """Seconds of processor time so far: of the service, of its servers (those of their ended children too)."""
        own = self._service.cpu_times()
        servers = 0.0
        for process in self._service.children(recursive=True):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            servers += times.user + times.system + times.children_user + times.children_system
        return own.user + own.system, servers

    async def settled(self) -> None:
        """Wait until next to nothing happens: events announced, mail sent, audit rows written."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline:
            before = sum(self.cpu_s())
            await asyncio.sleep(1)
            if sum(self.cpu_s()) - before < 0.15:
                return
