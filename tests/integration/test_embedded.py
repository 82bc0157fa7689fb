"""The embedded servers: started, started again, killed, and given directories that cannot be used."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import nats
import psutil  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from adapters import embedded, embedded_bus, embedded_postgresql, embedded_valkey
from adapters.child_processes import end_survivor, user_namespaces_work, write_pid_file
from adapters.embedded import Addresses, EmbeddedFailure, EmbeddedServers
from adapters.embedded_state import port_is_free

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[2]
NAMES = ("postgres", "nats", "valkey")
PARENT = """
import asyncio, json, sys
from pathlib import Path
from adapters.embedded import EmbeddedServers

async def main():
    async with EmbeddedServers(Path(sys.argv[1]), log=lambda line: None) as servers:
        print(json.dumps({name: servers.pid_of(name) for name in ("postgres", "nats", "valkey")}), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def _servers(directory: Path, log: Callable[[str], None] = lambda _line: None) -> EmbeddedServers:
    return EmbeddedServers(directory, log=log)


async def _until(condition: Callable[[], bool], what: str, limit_seconds: float = 20) -> None:
    deadline = asyncio.get_running_loop().time() + limit_seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)


def _family(pids: list[int]) -> list[int]:
    """The processes and all that they started."""
    return [*pids, *(child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True))]


async def _execute(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def _connect_worker(addresses: Addresses) -> Client:
    return await nats.connect(addresses.nats_worker_url, inbox_prefix=b"_INBOX.worker", connect_timeout=5)


async def _all_serve(addresses: Addresses) -> bool:
    try:
        assert addresses.redis_url is not None
        async with Redis.from_url(addresses.redis_url, retry=Retry(NoBackoff(), 0)) as redis:
            await redis.get("key")
        bus = await nats.connect(addresses.nats_url, allow_reconnect=False, connect_timeout=5, error_cb=_ignore)
        await bus.jetstream().account_info()
        await bus.close()
        return await _execute(addresses.database_url, "SELECT 1") == 1
    except Exception:  # noqa: BLE001  each driver says "not yet" in its own way
        return False


async def _ignore(_error: Exception) -> None: ...


async def test_a_second_start_keeps_data_ports_and_credentials(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data") as servers:
        first = servers.addresses
        secret = servers.state.secret("smtp")
        await _execute(first.database_owner_url, "CREATE TABLE kept AS SELECT 42 AS figure")
        bus = await _connect_worker(first)
        await bus.jetstream().add_stream(name="KEPT", subjects=["users.events.>"])
        await bus.jetstream().publish("users.events.v1.Kept.1", b"kept")
        await bus.close()
    async with _servers(tmp_path / "data") as servers:
        assert servers.addresses == first
        assert servers.state.secret("smtp") == secret
        assert await _execute(first.database_owner_url, "SELECT figure FROM kept") == 42
        bus = await _connect_worker(first)
        assert (await bus.jetstream().get_msg("KEPT", seq=1)).data == b"kept"
        await bus.close()


async def test_nothing_is_open_to_others(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with _servers(directory) as servers:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in directory.rglob("*")} == {0}
        passwords = json.loads((directory / "credentials.json").read_text("utf-8"))["secrets"].values()
        for pid in _family([servers.pid_of(name) for name in NAMES]):
            process = psutil.Process(pid)
            assert not any(password in " ".join(process.cmdline()) for password in passwords)
            listening = [link for link in process.net_connections() if link.status == psutil.CONN_LISTEN]
            assert {link.laddr.ip for link in listening} <= {"127.0.0.1"}


async def test_servers_refuse_who_has_no_password(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data") as servers:
        for user in ("postgres", "user_service", "user_service_owner"):
            with pytest.raises(asyncpg.PostgresError):
                await _execute(
                    f"postgresql://{user}@127.0.0.1:{servers.addresses.database_port}/user_service", "SELECT 1"
                )
        async with Redis(port=servers.addresses.redis_port or 0, protocol=2, retry=Retry(NoBackoff(), 0)) as redis:
            with pytest.raises(AuthenticationError):
                await redis.get("key")


async def test_the_application_owns_nothing(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data") as servers:
        for url in (servers.addresses.database_url, servers.addresses.database_owner_url):
            assert await _execute(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await _execute(servers.addresses.database_url, "CREATE TABLE mine (id int)")
        assert await _execute(servers.addresses.database_url, "SHOW fsync") == "on"


@pytest.mark.skipif(os.geteuid() != 0 or not user_namespaces_work(), reason="for root where user namespaces work")
async def test_as_root_files_stay_roots(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data") as servers:
        owner = psutil.Process(servers.pid_of("postgres")).uids().real
        assert {path.stat().st_uid for path in (tmp_path / "data" / "postgres").iterdir()} == {owner} == {0}


async def test_a_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path / "data"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    started = json.loads(await asyncio.wait_for(parent.stdout.readline(), 60))
    family = _family(list(started.values()))
    parent.kill()
    await parent.communicate()
    async with _servers(tmp_path / "data") as servers:
        assert not set(family) & set(map(servers.pid_of, NAMES))
        assert await _all_serve(servers.addresses)
        await _until(lambda: not any(map(psutil.pid_exists, family)), "a child outlived its parent")


async def test_a_stop_leaves_no_child_and_no_port(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data") as servers:
        addresses, family = servers.addresses, _family(list(map(servers.pid_of, NAMES)))
    assert not any(map(psutil.pid_exists, family))
    assert all(map(port_is_free, (addresses.nats_port, addresses.database_port, addresses.redis_port or 0)))


async def test_a_survivor_is_ended_and_a_stranger_is_not(tmp_path: Path) -> None:
    # A grandchild: of a child of ours this process alone would learn the end.
    shell = await asyncio.create_subprocess_shell("sleep 60 & echo $!", stdout=asyncio.subprocess.PIPE)
    sleeper = int((await shell.stdout.readline()) if shell.stdout else b"")
    await _until(lambda: psutil.Process(sleeper).name() == "sleep", "the shell did not start it")
    noted, stranger = tmp_path / "noted.json", tmp_path / "stranger.json"
    write_pid_file(noted, sleeper)
    earlier = json.loads(noted.read_text("utf-8"))
    stranger.write_text(json.dumps(earlier | {"started": earlier["started"] - 60}), "utf-8")
    assert end_survivor(stranger, signal.SIGTERM) is None
    assert psutil.pid_exists(sleeper)
    assert await asyncio.to_thread(end_survivor, noted, signal.SIGTERM) == sleeper
    assert not psutil.pid_exists(sleeper)
    await shell.communicate()


@asynccontextmanager
async def _watched(directory: Path, lines: list[str]) -> AsyncIterator[EmbeddedServers]:
    async with _servers(directory, lines.append) as servers:
        watch = asyncio.create_task(servers.watch())
        try:
            yield servers
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


async def test_a_killed_server_is_started_again(tmp_path: Path) -> None:
    lines: list[str] = []
    async with _watched(tmp_path / "data", lines) as servers:
        addresses = servers.addresses
        await _execute(addresses.database_owner_url, "CREATE TABLE kept AS SELECT 42 AS figure")
        for name in NAMES:
            os.kill(servers.pid_of(name), signal.SIGKILL)
        await _until(lambda: sum("serves again" in line for line in lines) == 3, "not all came back")
        assert await _all_serve(addresses)
        assert await _execute(addresses.database_owner_url, "SELECT figure FROM kept") == 42


async def test_a_server_stopped_on_purpose_stays_away_until_started(tmp_path: Path) -> None:
    lines: list[str] = []
    async with _watched(tmp_path / "data", lines) as servers:
        for name in NAMES:
            await servers.stop_one(name)
            with pytest.raises(EmbeddedFailure):
                servers.pid_of(name)
            await servers.start_one(name)
        assert await _all_serve(servers.addresses)
        assert lines == []


async def test_a_stale_lock_file_of_postgres_is_no_obstacle(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data"):
        pass
    lock = tmp_path / "data" / "postgres" / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{tmp_path}\n1\n1\n\n127.0.0.1\n", "utf-8")  # the number of somebody who lives
    lock.chmod(0o600)
    async with _servers(tmp_path / "data") as servers:
        assert await _all_serve(servers.addresses)


async def test_two_on_one_directory(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data") as servers:
        with pytest.raises(EmbeddedFailure, match=f"in use by another process \\(pid {os.getpid()}\\)"):
            await _servers(tmp_path / "data").__aenter__()
        assert await _all_serve(servers.addresses)


async def _failure(directory: Path) -> str:
    before = set(psutil.Process().children())  # the servers that all other tests share may run beside this one
    with pytest.raises(EmbeddedFailure) as caught:
        await _servers(directory).__aenter__()
    assert "\n" not in str(caught.value)
    assert set(psutil.Process().children()) <= before
    return str(caught.value)


async def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file", "utf-8")
    assert str(tmp_path / "data") in await _failure(tmp_path / "data")


async def test_broken_data_is_said_with_the_log_to_read(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data"):
        pass
    (tmp_path / "data" / "postgres" / "global" / "pg_control").write_bytes(b"")
    said = await _failure(tmp_path / "data")
    assert "pg_control" in said
    assert str(tmp_path / "data" / "logs" / "postgres.log") in said


async def test_data_that_is_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    assert "no PostgreSQL cluster" in await _failure(tmp_path / "data")


async def test_credentials_that_cannot_be_read_or_do_not_fit(tmp_path: Path) -> None:
    async with _servers(tmp_path / "data"):
        pass
    credentials = tmp_path / "data" / "credentials.json"
    credentials.write_text("{", "utf-8")
    assert "credentials.json" in await _failure(tmp_path / "data")
    credentials.unlink()
    assert "credentials.json" in await _failure(tmp_path / "data")


async def test_a_port_that_was_asked_for_and_is_taken(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with taken:
        port = taken.sockets[0].getsockname()[1]
        with pytest.raises(EmbeddedFailure, match=f"port {port} for nats is taken"):
            await EmbeddedServers(tmp_path / "data", log=lambda _line: None, ports={"nats": port}).__aenter__()


@pytest.mark.parametrize(
    ("module", "variable"),
    [
        (embedded_postgresql, "USER_SERVICE_DEV_POSTGRES_BIN"),
        (embedded_bus, "USER_SERVICE_DEV_NATS_SERVER"),
        (embedded_valkey, "USER_SERVICE_DEV_VALKEY_SERVER"),
    ],
)
async def test_a_variable_that_names_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    assert variable in await _failure(tmp_path / "data"), module


async def test_without_valkey_it_goes_on_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "valkey_program", lambda: None)
    lines: list[str] = []
    async with _servers(tmp_path / "data", lines.append) as servers:
        assert servers.addresses.redis_url is None
    assert len(lines) == 1
