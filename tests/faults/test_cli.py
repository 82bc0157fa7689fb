"""The command line when something is wrong: one clear line, the right exit code, and advice."""

import asyncio
import json
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import psutil  # type: ignore[import-untyped]
import pytest
from prometheus_client import Counter

from handlers import supervisor
from tests.faults.house import ADMIN_EMAIL, ADMIN_PASSWORD, House
from tests.gateway import new_email
from tests.program import command, until

SERVED = 'http_requests_total{method="NATS",route="users.v1.auth.jwks",status_code="200"}'


def require_one_line(err: str, *words: str) -> None:
    assert len(err.strip().splitlines()) == 1, err
    assert all(word in err for word in words), err


async def test_run_lists_every_missing_setting_at_once() -> None:
    code, _, err = await command("run")
    assert code == 1
    missing = {"NATS_URL", "DATABASE_URL", "REDIS_URL", "SMTP_URL", "USER_SERVICE_KEYS_FILE"}
    assert {line.split(":")[0] for line in err.splitlines()} == missing


async def test_run_lists_faults_of_settings_and_key_file_together(house: House) -> None:
    code, _, err = await house.command(
        "run", USER_SERVICE_KEYS_FILE=str(house.base / "absent.json"), USER_SERVICE_POOL_MAX="many", HTTP_PORT="-1"
    )
    assert code == 1
    assert {line.partition(":")[0] for line in err.splitlines()[:2]} == {"HTTP_PORT", "USER_SERVICE_POOL_MAX"}
    assert "absent.json" in err.splitlines()[2]


async def test_config_shows_values_as_they_are_written_and_what_is_wrong_with_them(house: House) -> None:
    code, said, err = await house.command(
        "config", "--json", USER_SERVICE_POOL_MAX="many", USER_SERVICE_LIMIT_LOGIN="7/60"
    )
    assert code == 0, err
    rows = {row["variable"]: row for row in json.loads(said)}
    assert rows["USER_SERVICE_LIMIT_LOGIN"]["default"] == "5/900"
    assert rows["USER_SERVICE_LIMIT_LOGIN"]["value"] == "7/60"
    assert rows["USER_SERVICE_ARGON2"]["default"] == "m=19456,t=2,p=1"
    assert rows["USER_SERVICE_DELIVERY_PAUSES"]["value"] == house.env["USER_SERVICE_DELIVERY_PAUSES"]
    assert rows["DATABASE_URL"]["value"] == "***"
    assert rows["USER_SERVICE_POOL_MAX"]["value"] == "many"
    assert "integer" in rows["USER_SERVICE_POOL_MAX"]["fault"]
    assert [name for name, row in rows.items() if row["fault"]] == ["USER_SERVICE_POOL_MAX"]


async def test_run_refuses_plain_text_to_elsewhere(house: House) -> None:
    # SMTP is not among them: elsewhere than on loopback the mailer demands STARTTLS, or sends nothing.
    plain = {
        "NATS_URL": "nats://worker:secret@192.0.2.1:4222",
        "DATABASE_URL": "postgresql://user:secret@192.0.2.1/users",
        "REDIS_URL": "redis://:secret@192.0.2.1/0",
    }
    code, _, err = await house.command("run", **plain)
    assert code == 1
    assert {line.partition(": ")[0] for line in err.splitlines()} == plain.keys()
    assert all("no verified TLS" in line for line in err.splitlines())
    assert "secret" not in err


async def test_an_unknown_group_and_a_missing_key_file(house: House) -> None:
    unknown, keyless = await asyncio.gather(
        house.command("run", "requests", "emial"),
        house.command("run", USER_SERVICE_KEYS_FILE=str(house.base / "absent.json")),
    )
    assert unknown[0] == 2
    assert "emial" in unknown[2]
    assert keyless[0] == 1
    require_one_line(keyless[2], "absent.json", "keys init")


async def test_run_with_a_server_away_says_so_in_one_line(house: House) -> None:
    async with house.without("postgres"):
        code, _, err = await house.command("run", USER_SERVICE_LOG_LEVEL="error")
    assert code == 1
    require_one_line(err, "doctor")


@asynccontextmanager
async def fresh_database(house: House) -> AsyncIterator[dict[str, str]]:
    """Settings that name a database without a schema."""
    name = f"fresh_{uuid4().hex[:8]}"
    owner = urlsplit(house.at.database_owner_url)
    admin = await asyncpg.connect(house.at.database_admin_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER {owner.username}")
        yield {"DATABASE_OWNER_URL": owner._replace(path=f"/{name}").geturl()}
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def test_migrations_are_applied_once_and_never_changed_afterwards(house: House) -> None:
    async with fresh_database(house) as env:
        outcomes = await asyncio.gather(*(house.command("migrate", "--json", **env) for _ in range(5)))
        assert [code for code, _, _ in outcomes] == [0] * 5, outcomes
        each = [json.loads(said)["applied"] for _, said, _ in outcomes]
        assert sorted(map(len, each))[:4] == [0] * 4
        applied = [name for names in each for name in names]
        assert applied[0].startswith("0001_")

        code, said, _ = await house.command("migrate", "--status", "--json", **env)
        assert code == 0
        assert [row["name"] for row in json.loads(said)] == applied
        assert all(row["appliedAt"] for row in json.loads(said))

        owner = await asyncpg.connect(env["DATABASE_OWNER_URL"])
        await owner.execute("UPDATE schema_migrations SET checksum = 'another' WHERE version = 1")
        code, _, err = await house.command("migrate", **env)
        assert code == 1
        require_one_line(err, "0001_", "was changed")

        await owner.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, '9999_later.sql', '')"
        )
        await owner.execute("DELETE FROM schema_migrations WHERE version = 1")
        code, _, err = await house.command("migrate", **env)
        assert code == 1
        require_one_line(err, "9999")
        await owner.close()


async def test_dev_says_in_one_line_what_is_in_its_way(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        broken = tmp_path / "broken"
        (broken / "postgres").mkdir(parents=True)
        on_taken, on_broken = await asyncio.gather(
            command("dev", "--data-dir", str(tmp_path / "data"), env={"HTTP_PORT": port}),
            command("dev", "--data-dir", str(broken)),
        )
    assert on_taken[0] == 1
    require_one_line(on_taken[2], port, "taken")
    assert not (tmp_path / "data" / "ready.json").exists()
    assert on_broken[0] == 1
    require_one_line(on_broken[2], str(broken), "PostgreSQL")


async def test_keys_init_never_touches_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert (await command("keys", "init", str(path)))[0] == 0
    made = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    code, _, err = await command("keys", "init", str(path))
    assert code == 1
    require_one_line(err, str(path))
    assert path.read_bytes() == made


async def test_create_admin_holds_to_the_rules_for_passwords(house: House) -> None:
    weak, taken = await asyncio.gather(
        house.command("create-admin", new_email(), USER_SERVICE_ADMIN_PASSWORD="password"),
        house.command("create-admin", ADMIN_EMAIL, USER_SERVICE_ADMIN_PASSWORD=ADMIN_PASSWORD),
    )
    assert (weak[0], taken[0]) == (1, 1)
    require_one_line(weak[2], "password")
    require_one_line(taken[2], ADMIN_EMAIL)


async def test_workers_end_with_their_supervisor(house: House) -> None:
    async with house.run("--workers", "2", "requests") as run:
        workers = psutil.Process(run.process.pid).children()
        assert len(workers) == 2
        run.process.send_signal(signal.SIGKILL)
        await until(lambda: not any(worker.is_running() for worker in workers), within_s=15, what="the workers to end")


async def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[asyncio.subprocess.Process] = []
    refused = iter([False, True, False])
    real = asyncio.create_subprocess_exec

    async def start(*_: object, **__: object) -> asyncio.subprocess.Process:
        if next(refused):
            raise BlockingIOError(11, "no more processes")
        started.append(await real("sleep", "60" if started else "0"))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    ended, stop = Counter("ends", "of workers", registry=None), asyncio.Event()
    keeping = asyncio.create_task(supervisor._keep(["requests"], tmp_path, stop, 0, ended))
    await until(lambda: len(started) == 2, within_s=10, what="another start")
    keeping.cancel()  # something else has ended the supervisor
    await asyncio.wait([keeping])
    assert await asyncio.wait_for(started[1].wait(), 5) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("worker", "in_order"),
    [
        ("trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done", True),
        ("trap '' TERM; echo ready; while :; do sleep 0.1; done", False),
        ("trap 'exit 1' TERM; echo ready; while :; do sleep 0.1; done", False),
    ],
    ids=["ends", "hangs", "fails"],
)
async def test_a_worker_that_does_not_end_in_order_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, worker: str, in_order: bool
) -> None:
    real = asyncio.create_subprocess_exec
    stop = asyncio.Event()

    async def start(*_: object, **__: object) -> asyncio.subprocess.Process:
        process = await real("sh", "-c", worker, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
        stop.set()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(supervisor, "STOP_S", 0.5)
    ended = Counter("ends_told", "of workers", registry=None)
    assert await supervisor._keep(["requests"], tmp_path, stop, 0, ended) is in_order


async def test_workers_are_counted_together_started_again_and_stopped(house: House) -> None:
    async with house.run("--workers", "2", "requests", "relay") as run, house.gateway() as client:
        # Made by `create-admin`: it can sign in, and is one.
        found = await client.call("admin.users.list", access=await client.admin(), search=ADMIN_EMAIL)
        assert [user["role"] for user in found.data] == ["admin"]

        workers = psutil.Process(run.process.pid).children()
        assert len(workers) == 2
        for _ in range(40):
            assert (await client.call("auth.jwks")).ok
        assert (await run.figures())[SERVED] == 40

        workers[0].send_signal(signal.SIGKILL)
        await until(lambda: len(run.lines("ready")) == 3, within_s=20, what="the killed worker to be there again")
        for _ in range(10):
            assert (await client.call("auth.jwks")).ok
        figures = await run.figures()
        assert (figures[SERVED], figures["worker_ends_total"]) == (50, 1)
        assert (figures["requests_in_work_max"], figures["database_connections_max"]) == (2 * 512, 2 * 20)
        assert not [series for series in figures if "pid=" in series]

        alive = psutil.Process(run.process.pid).children()
        assert len(alive) == 2
        began = time.monotonic()
        assert await run.stop() == 0
        assert time.monotonic() - began < 12
        assert not any(worker.is_running() for worker in alive)
    told = [json.loads(line) for line in run.log.splitlines() if line.startswith("{")]
    assert [line["message"] for line in told if line["level"] == "error"] == ["worker ended"]


async def test_scrub_names_what_is_not_its_own_to_write_anew(house: House) -> None:
    owner = await asyncpg.connect(house.at.database_admin_url, database="user_service")
    try:
        await owner.execute("CREATE TABLE of_somebody_else AS SELECT 'a word' AS word")
        await owner.execute("ALTER DATABASE user_service OWNER TO postgres")
        await owner.execute("GRANT CONNECT, TEMPORARY ON DATABASE user_service TO user_service_owner")
        code, out, err = await house.command("scrub", "--json")
        assert code == 1, err
        left = json.loads(out)["left"]
        assert {text.partition(" ")[0] for text in left} == {
            "public.of_somebody_else", "pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data",
        }  # fmt: skip
    finally:
        await owner.execute("ALTER DATABASE user_service OWNER TO user_service_owner")
        await owner.execute("DROP TABLE of_somebody_else")
        await owner.close()
    code, out, err = await house.command("scrub")
    assert (code, "nothing of what was erased" in out) == (0, True), err
