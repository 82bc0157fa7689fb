"""Real PostgreSQL, nats-server and Valkey as child processes on loopback, for `user-service dev` and for tests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from adapters.child_processes import STOP_LIMIT_SECONDS, Child, Command, end_survivor, write_pid_file
from adapters.embedded_bus import Bus
from adapters.embedded_postgresql import APPLICATION, OWNER, SUPERUSER, PostgreSQL
from adapters.embedded_state import EmbeddedFailure, KeptState, locked, make_private, port_is_free
from adapters.embedded_valkey import Valkey, valkey_program

__all__ = ["Addresses", "EmbeddedFailure", "EmbeddedServers"]

_READY_LIMIT_SECONDS = 60.0
_READY_TRY_LIMIT_SECONDS = 10.0
_READY_PAUSE_SECONDS = 0.02
_LAST_TRY_SECONDS = 0.5
_RESTART_PAUSE_MIN_SECONDS = 0.1
_RESTART_PAUSE_MAX_SECONDS = 10.0
_STEADY_AFTER_SECONDS = 30.0
_LOG_TAIL_BYTES = 4096


class _Server(Protocol):
    """What the three servers have in common."""

    port: int

    @property
    def name(self) -> str: ...
    @property
    def stop_signal(self) -> signal.Signals: ...
    async def prepare(self) -> None: ...
    def command(self) -> Command: ...
    async def ready(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything is, with credentials: never print one whole."""

    nats_url: str = field(repr=False)
    nats_worker_url: str = field(repr=False)
    nats_urls: Mapping[str, str] = field(repr=False)
    database_url: str = field(repr=False)
    database_owner_url: str = field(repr=False)
    database_admin_url: str = field(repr=False)
    redis_url: str | None = field(repr=False)
    nats_port: int
    database_port: int
    redis_port: int | None


@dataclass(slots=True)
class _Slot:
    """A server, its process of the moment, and whether it should run."""

    server: _Server
    log_path: Path
    pid_path: Path
    child: Child | None = None
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)


class EmbeddedServers:
    """The servers under one data directory; entering starts them, leaving stops them. End `watch` before leaving."""

    def __init__(
        self,
        data_dir: Path,
        *,
        log: Callable[[str], None],
        sync_interval_always: bool = True,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._log = log
        self._sync_always = sync_interval_always
        self._ports = ports or {}
        self._held = ExitStack()
        self._slots: dict[str, _Slot] = {}
        self._state: KeptState | None = None
        self._addresses: Addresses | None = None

    @property
    def addresses(self) -> Addresses:
        """The addresses of what was started."""
        if self._addresses is None:
            raise EmbeddedFailure("the embedded servers have not been started")
        return self._addresses

    @property
    def state(self) -> KeptState:
        """Secrets and ports that outlive a start, for what else `dev` runs on this directory."""
        if self._state is None:
            raise EmbeddedFailure("the embedded servers have not been started")
        return self._state

    async def __aenter__(self) -> Self:
        """Take the directory and start all servers at once; on a failure none is left running."""
        make_private(self._data_dir)
        self._held.enter_context(locked(self._data_dir))
        try:
            await self._start_all()
        except BaseException:
            await self._stop_all()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all servers within a limit and let go of the directory."""
        await self._stop_all()

    async def watch(self) -> None:
        """Run for ever: a server that ends unasked is started again on the same port and data."""
        async with asyncio.TaskGroup() as group:
            for slot in self._slots.values():
                group.create_task(self._keep_running(slot))

    def pid_of(self, name: str) -> int:
        """Return the process id of a running server (`postgres`, `nats` or `valkey`)."""
        child = self._slot(name).child
        if child is None or child.exit_status is not None:
            raise EmbeddedFailure(f"{name} does not run")
        return child.pid

    async def stop_one(self, name: str) -> None:
        """Stop one server; `watch` leaves it alone until `start_one`."""
        await self._stop(self._slot(name))

    async def start_one(self, name: str) -> None:
        """Start a stopped server again on the same port and data, and wait until it serves."""
        slot = self._slot(name)
        async with slot.starting:
            if slot.child is None or slot.child.exit_status is not None:
                await self._launch(slot)

    def _slot(self, name: str) -> _Slot:
        if name not in self._slots:
            raise EmbeddedFailure(f"no embedded server is called {name}")
        return self._slots[name]

    async def _start_all(self) -> None:
        logs = self._data_dir / "logs"
        make_private(logs)
        make_private(self._data_dir / "run")
        state = self._state = KeptState(self._data_dir)
        postgres = PostgreSQL(self._data_dir / "postgres", logs / "postgres.log", state, self._log)
        bus = Bus(self._data_dir / "nats", logs / "nats.log", state, sync_always=self._sync_always)
        valkey = self._valkey(state, logs / "valkey.log")
        for server in (postgres, bus, valkey):
            if server is not None:
                pid_path = self._data_dir / "run" / f"{server.name}.json"
                self._slots[server.name] = _Slot(server, logs / f"{server.name}.log", pid_path)
        try:
            async with asyncio.TaskGroup() as group:
                for slot in self._slots.values():
                    group.create_task(self._launch(slot))
        except ExceptionGroup as failures:
            said = [error for error in failures.exceptions if isinstance(error, EmbeddedFailure)]
            if len(said) < len(failures.exceptions):
                raise
            raise said[0] from None
        self._addresses = _addresses(postgres, bus, valkey)

    def _valkey(self, state: KeptState, log_path: Path) -> Valkey | None:
        program = valkey_program()
        if program is None:
            self._log("no valkey-server or redis-server here: going on without a shared cache")
            return None
        return Valkey(program, self._data_dir / "valkey", log_path, state)

    async def _launch(self, slot: _Slot) -> None:
        """Start one server and return when it serves."""
        server = slot.server
        slot.wanted.set()
        survivor = await asyncio.to_thread(end_survivor, slot.pid_path, server.stop_signal)
        if survivor is not None:
            self._log(f"stopped {server.name} of an earlier run (pid {survivor})")
        self._choose_port(server)
        try:
            await server.prepare()
            child = slot.child = await Child.start(server.command())
        except OSError as error:
            raise EmbeddedFailure(f"cannot prepare {server.name} in {self._data_dir}: {error}") from error
        write_pid_file(slot.pid_path, child.pid)
        await self._wait_until_ready(slot, child)

    def _choose_port(self, server: _Server) -> None:
        if server.port == 0:
            server.port = self.state.port(server.name, self._ports.get(server.name))
        elif not port_is_free(server.port):
            raise EmbeddedFailure(f"port {server.port} of {server.name} has been taken by another program")

    async def _wait_until_ready(self, slot: _Slot, child: Child) -> None:
        """Try a real connection until one works, the process ends, or the limit has passed."""
        name, seen = slot.server.name, "nothing was tried"
        deadline = asyncio.get_running_loop().time() + _READY_LIMIT_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if child.exit_status is not None:
                raise EmbeddedFailure(f"{name} ended while starting: {_last_line(slot.log_path)}; see {slot.log_path}")
            try:
                async with asyncio.timeout(_READY_TRY_LIMIT_SECONDS):
                    return await _tried(slot.server)
            except EmbeddedFailure:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again until the deadline
                seen = f"{type(error).__name__}"
            await asyncio.sleep(_READY_PAUSE_SECONDS)
        raise EmbeddedFailure(f"{name} was not ready in {_READY_LIMIT_SECONDS:.0f} s ({seen}); see {slot.log_path}")

    async def _keep_running(self, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        pause = _RESTART_PAUSE_MIN_SECONDS
        while True:
            await slot.wanted.wait()
            began = loop.time()
            status = None if slot.child is None else await slot.child.wait()
            if loop.time() - began > _STEADY_AFTER_SECONDS:
                pause = _RESTART_PAUSE_MIN_SECONDS
            async with slot.starting:
                if not slot.wanted.is_set() or (slot.child is not None and slot.child.exit_status is None):
                    continue
                self._log(f"{slot.server.name} ended unasked (status {status}), starting it again")
                await self._launch_again(slot)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RESTART_PAUSE_MAX_SECONDS)

    async def _launch_again(self, slot: _Slot) -> None:
        try:
            await self._launch(slot)
        except EmbeddedFailure as failure:
            self._log(str(failure))
            if slot.child is not None:
                await slot.child.stop()
        else:
            self._log(f"{slot.server.name} serves again on port {slot.server.port}")

    async def _stop(self, slot: _Slot) -> None:
        slot.wanted.clear()
        if slot.child is not None:
            await slot.child.stop(STOP_LIMIT_SECONDS)
            slot.pid_path.unlink(missing_ok=True)

    async def _stop_all(self) -> None:
        try:
            await asyncio.gather(*(self._stop(slot) for slot in self._slots.values()))
        finally:
            self._held.close()


def _addresses(postgres: PostgreSQL, bus: Bus, valkey: Valkey | None) -> Addresses:
    return Addresses(
        nats_url=bus.url("dev"),
        nats_worker_url=bus.url("worker"),
        nats_urls={
            "gateway": bus.url("gateway"),
            "adminGateway": bus.url("admin-gateway"),
            "listener": bus.url("listener"),
            "operator": bus.url("operator"),
        },
        database_url=postgres.url(APPLICATION),
        database_owner_url=postgres.url(OWNER),
        database_admin_url=postgres.url(SUPERUSER),
        redis_url=None if valkey is None else valkey.url(),
        nats_port=bus.port,
        database_port=postgres.port,
        redis_port=None if valkey is None else valkey.port,
    )


def _last_line(log_path: Path) -> str:
    """Return the last line a server wrote: most often the reason."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - _LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return "it wrote no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")


async def _tried(server: _Server) -> None:
    """One try, which ends by itself also where the start is given up: the clients would leave half-made connections."""
    trying = asyncio.create_task(server.ready())
    try:
        await asyncio.shield(trying)
    except asyncio.CancelledError:
        with suppress(Exception):  # what comes of it matters no more
            async with asyncio.timeout(_LAST_TRY_SECONDS):
                await trying
        raise
