"""`run --workers N`: one supervisor, N processes of the same groups, one page of health and metrics for all."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.multiprocess import MultiProcessCollector

from adapters.bound_children import ending_with_us
from adapters.nats import close, connect
from adapters.postgres import Database
from adapters.redis import Redis
from adapters.settings import Settings
from adapters.telemetry import WorkerMetrics
from adapters.worker_figures import fold_in
from handlers.endings import START_S, Ended, NotWanted, wanted
from handlers.terminal import WORKER_STOP_S_MAX
from handlers.vitals import Vitals, http_routes, http_server

log = structlog.get_logger()

STOP_S = WORKER_STOP_S_MAX + 4.0
"""A worker that was asked to end ends itself by force before, and says where it hangs."""
_IN_ORDER = (0, -signal.SIGTERM)  # the latter before it has begun to listen for signals
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 30.0
STEADY_S = 60.0


async def supervise(settings: Settings, groups: Sequence[str], workers: int, *, stop: asyncio.Event) -> None:
    """Keep N workers running until `stop`: one that ends is started again, after a pause that grows.

    Raises `Unavailable` when a server does not answer at the start, `Ended` for workers that did not end in order.
    """
    async with AsyncExitStack() as stack:
        figures = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="user-service-metrics-")))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(figures))  # type: ignore[no-untyped-call]
        ended = WorkerMetrics(registry).ended
        with suppress(NotWanted):
            async with wanted("the start", unless=stop, within_s=START_S):
                port = await _serve_pages(stack, settings, registry, stop=stop)
            log.info("supervising", workers=workers, httpPort=port)
            async with asyncio.TaskGroup() as keepers:
                kept = [
                    keepers.create_task(_keep(groups, figures, stop, number, ended), name=f"worker {number}")
                    for number in range(workers)
                ]
            if disorderly := sum(not keeper.result() for keeper in kept):
                raise Ended(f"{disorderly} of {workers} workers did not end in order")


async def _serve_pages(
    stack: AsyncExitStack, settings: Settings, registry: CollectorRegistry, *, stop: asyncio.Event
) -> int:
    """Health and metrics of all, over connections of the supervisor's own; the port."""

    async def on_closed() -> None:
        if not stop.is_set():
            log.error(
                "the supervisor has lost NATS for good: its health says so, the workers have connections of their own"
            )

    database = await Database.connect(settings.model_copy(update={"pool_min": 1, "pool_max": 2}), name="supervisor")
    stack.push_async_callback(database.close)
    redis = Redis(settings.redis)
    stack.push_async_callback(redis.close)
    bus = await connect(settings, name="supervisor", on_closed=on_closed)
    stack.push_async_callback(close, bus)
    routes = http_routes(Vitals(settings, database, bus, redis).check, registry)
    return await stack.enter_async_context(http_server(routes, host=settings.http_host, port=settings.http_port))


async def _keep(groups: Sequence[str], figures: Path, stop: asyncio.Event, number: int, ended: Counter) -> bool:
    """Keep one worker running until `stop`; whether the last one has ended in order then."""
    pause_s = PAUSE_S_MIN
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        began = loop.time()
        try:
            process = await _start(groups, figures)
        except (OSError, subprocess.SubprocessError) as error:
            how: int | str | None = type(error).__name__  # too many processes, too little memory: for a while
        else:
            await _until_ended(process, stop)
            fold_in(figures, process.pid)
            how = process.returncode
        if stop.is_set():
            in_order = how in _IN_ORDER
            if not in_order:
                log.error("worker did not end in order", worker=number, exit=how)
            return in_order
        ended.inc()
        pause_s = PAUSE_S_MIN if loop.time() - began > STEADY_S else min(pause_s * 2, PAUSE_S_MAX)
        log.error("worker ended", worker=number, exit=how, startsAgainInS=pause_s)
        try:
            async with asyncio.timeout(pause_s):
                await stop.wait()
        except TimeoutError:
            continue
    return True


async def _start(groups: Sequence[str], figures: Path) -> asyncio.subprocess.Process:
    """A worker, which is asked to end where its supervisor dies."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "handlers.start", "run", *groups,
        env=os.environ | {"USER_SERVICE_SUPERVISED": "1", "PROMETHEUS_MULTIPROC_DIR": str(figures)},
        preexec_fn=ending_with_us(signal.SIGTERM),
    )  # fmt: skip


async def _until_ended(process: asyncio.subprocess.Process, stop: asyncio.Event) -> None:
    """Wait for a worker's end; on `stop` ask it to end, and where it does not, make it."""
    ending = asyncio.create_task(process.wait())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([ending, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            _ask_to_end(process)
            await asyncio.wait([ending], timeout=STOP_S)
        if not ending.done():
            process.kill()
            await ending
    finally:
        stopping.cancel()
        if process.returncode is None:
            _ask_to_end(process)


def _ask_to_end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):  # it has just ended, and nobody has been told yet
        process.send_signal(signal.SIGTERM)
