"""Real servers, keys and a mail sink that a test holds, and `user-service run …` as child processes on them."""

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import nats
import psutil  # type: ignore[import-untyped]
from nats.aio.client import Client as NatsClient
from nats.js.errors import NotFoundError

from adapters.embedded import Addresses, EmbeddedServers
from adapters.embedded_state import LOOPBACK, EmbeddedFailure
from adapters.keys import write_keys
from adapters.mail_sink import MailSink
from handlers.terminal import STOP_S_MAX
from tests import forking
from tests.gateway import Gateway, database, gateway
from tests.program import FAST, clean_environment, command, until

ADMIN_EMAIL = "operator@example.com"
ADMIN_PASSWORD = "Difference-Engine-1822"
SERVERS = ("postgres", "nats", "valkey")
STREAMS = ("USER_EVENTS", "USER_DEAD_LETTERS", "USER_REPLAYS")


class Run:
    """One `user-service run …`: started, paused, killed, stopped."""

    def __init__(self, env: Mapping[str, str], log_file: Path, words: tuple[str, ...]) -> None:
        self._env = env
        self._log_file = log_file
        self._words = words
        self._process: forking.Started | asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "Run":
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def launch(self) -> None:
        """Start it, and wait for nothing."""
        with self._log_file.open("wb") as log:
            words, env = ("run", *self._words), clean_environment() | dict(self._env)
            self._process = await forking.start(words, env=env, out=log.fileno(), err=log.fileno())

    async def start(self) -> None:
        """Start, and wait until its groups serve; with workers, until all of them do."""
        await self.launch()
        workers = int(self._words[self._words.index("--workers") + 1]) if "--workers" in self._words else 1
        await until(
            lambda: len(self.lines("ready")) >= workers or self.has_ended, within_s=60, what=f"run {self._words}"
        )
        assert not self.has_ended, self.log[-4000:]

    @property
    def process(self) -> forking.Started | asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    @property
    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Every line of the log with this message."""
        found = [line for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in map(json.loads, found) if line["message"] == message]

    @property
    def http_port(self) -> int:
        """Where health and metrics are."""
        told = self.lines("supervising") or self.lines("ready")
        return int(told[0]["httpPort"])

    async def figures(self) -> dict[str, float]:
        """What `/metrics` says, by series."""

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as answer:
                return str(answer.read(), "utf-8")

        text = await asyncio.to_thread(page)
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(figure) for name, _, figure in lines}

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code. One that hangs ends by force, and its log says where it was."""
        if not self.has_ended:
            began = time.monotonic()
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            ended, _ = await asyncio.wait([asyncio.ensure_future(self.process.wait())], timeout=30)
            assert ended, self.log[-4000:]
            assert time.monotonic() - began < STOP_S_MAX, self.log[-4000:]
        return self.process.returncode or 0


class House:
    """What all fault tests share: servers with a schema and an admin. A test looks at the users that it made."""

    def __init__(self, base: Path, servers: EmbeddedServers, sink: MailSink) -> None:
        self.base = base
        self.servers = servers
        self.sink = sink
        self.mail_dir = base / "mail"
        self._runs = 0

    @property
    def at(self) -> Addresses:
        return self.servers.addresses

    @property
    def env(self) -> dict[str, str]:
        """The settings of a service on these servers."""
        return FAST | {
            "NATS_URL": self.at.nats_worker_url,
            "DATABASE_URL": self.at.database_url,
            "DATABASE_OWNER_URL": self.at.database_owner_url,
            "REDIS_URL": self.at.redis_url or "none",
            "SMTP_URL": self.sink.url,
            "HTTP_PORT": "0",
            "USER_SERVICE_KEYS_FILE": str(self.base / "keys.json"),
            "USER_SERVICE_DELIVERY_PAUSES": "0.2 0.4 0.8 1.6 3",
            "USER_SERVICE_ADMIN_SECOND_FACTOR": "false",
        }

    @property
    def ready(self) -> dict[str, Any]:
        """What a ready file would say."""
        return {
            "natsUrl": self.at.nats_url,
            "databaseUrl": self.at.database_url,
            "mailDir": str(self.mail_dir),
            "admin": {"email": ADMIN_EMAIL, "password": ADMIN_PASSWORD},
        }

    def run(self, *words: str, **env: str) -> Run:
        """`user-service run …` with these settings besides; enter it to start it."""
        self._runs += 1
        return Run(self.env | env, self.base / f"run-{self._runs}.log", words)

    async def command(self, *words: str, **env: str) -> tuple[int, str, str]:
        """Another command of the program: exit code, standard output, standard error."""
        return await command(*words, env=self.env | env)

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        async with gateway(self.ready) as client:
            yield client

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[NatsClient]:
        """A connection with the rights of the service itself."""
        nc = await nats.connect(self.at.nats_worker_url, inbox_prefix=b"_INBOX.worker", allow_reconnect=False)
        try:
            yield nc
        finally:
            await nc.close()

    @asynccontextmanager
    async def listener(self) -> AsyncIterator[NatsClient]:
        """A connection with the rights of another service."""
        nc = await nats.connect(self.at.nats_urls["listener"], inbox_prefix=b"_INBOX.listener", allow_reconnect=False)
        try:
            yield nc
        finally:
            await nc.close()

    @asynccontextmanager
    async def without_mail(self) -> AsyncIterator[None]:
        """The mail server is away while the block lasts, and comes back on its port."""
        await self.sink.__aexit__(None, None, None)
        try:
            yield
        finally:
            await self.sink.__aenter__()

    @asynccontextmanager
    async def silent_mail(self) -> AsyncIterator[None]:
        """The mail server takes connections and answers nothing while the block lasts, as one that is stopped."""
        taken: list[asyncio.Transport] = []

        class Silent(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken.append(cast(asyncio.Transport, transport))

        async with self.without_mail():
            server = await asyncio.get_running_loop().create_server(Silent, LOOPBACK, self.sink.port)
            try:
                yield
            finally:
                server.close()
                for transport in taken:
                    transport.abort()

    @asynccontextmanager
    async def without(self, name: str) -> AsyncIterator[None]:
        """A server is stopped while the block lasts, and comes back on its port and data."""
        await self.servers.stop_one(name)
        try:
            yield
        finally:
            await self.servers.start_one(name)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """A server takes what is sent and answers nothing while the block lasts; PostgreSQL is many processes, of which
        one that had just ended is gone as soon as the first one runs again."""
        first = psutil.Process(self.servers.pid_of(name))
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    async def kill(self, name: str) -> None:
        """SIGKILL a server; `bring_back` starts it again on its port and data."""
        os.kill(self.servers.pid_of(name), signal.SIGKILL)
        await until(lambda: not self._runs_now(name), within_s=10, what=f"{name} to be dead")

    async def bring_back(self, name: str) -> None:
        """Start a server that was killed or stopped."""
        await self.servers.start_one(name)

    def _runs_now(self, name: str) -> bool:
        try:
            self.servers.pid_of(name)
        except EmbeddedFailure:
            return False
        return True

    async def heal(self) -> None:
        """Everything runs again, whatever a test has done."""
        for name in SERVERS:
            try:
                os.kill(self.servers.pid_of(name), signal.SIGCONT)
            except EmbeddedFailure:
                await self.servers.start_one(name)

    @property
    def bus_files(self) -> Path:
        """Where JetStream keeps all it has."""
        return self.base / "data" / "nats" / "store"

    async def empty_streams(self) -> None:
        """A test begins with no event of another, not in the outbox either: the service makes its streams when it
        starts, and misses nothing, as if nothing had ever been announced."""
        async with database(self.ready) as rows:
            await rows.execute("DELETE FROM stream_marks")
            await rows.execute("DELETE FROM outbox")
            await rows.execute("UPDATE relay_heads SET version = 0, stream_sequence = 0")
        async with self.worker() as nc:
            for name in STREAMS:
                try:
                    await nc.jetstream().delete_stream(name)
                except NotFoundError:
                    continue


@asynccontextmanager
async def open_house(base: Path) -> AsyncIterator[House]:
    """Servers, a schema, keys, and an admin."""
    async with EmbeddedServers(base / "data", log=lambda _: None) as servers:
        sink = MailSink(base / "mail", "test", "secret", servers.state.port("smtp"))
        async with sink:
            house = House(base, servers, sink)
            write_keys(base / "keys.json")
            for words in (("migrate",), ("create-admin", ADMIN_EMAIL)):
                code, _, err = await house.command(*words, USER_SERVICE_ADMIN_PASSWORD=ADMIN_PASSWORD)
                assert code == 0, err
            yield house
