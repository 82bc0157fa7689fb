"""`doctor` against everything that can be wrong: named, with what to do, exit 1, in bounded time, and never a trace."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from nats.js.api import ConsumerConfig

from adapters.embedded_bus import nats_server_program
from adapters.settings import Settings
from adapters.streams import ACK_WAIT_S
from handlers.doctor import EXAMINATION_S, examine
from handlers.findings import Finding
from tests.builders import settings_of
from tests.faults.house import House
from tests.faults.ledger import Ledger, emails
from tests.faults.test_durables import durable
from tests.gateway import database
from tests.program import eventually

SERVERS = {"postgresql", "nats", "redis", "smtp"}
START_S = 12.0
"""The start of the program on a busy machine."""


class Report:
    """What `doctor` has said: the good findings, and of each fault what is wrong and what to do."""

    def __init__(self, code: int, said: str, err: str) -> None:
        assert "Traceback" not in said + err
        lines = said.splitlines()
        self.good = {found[1] for line in lines if (found := re.match(r"ok     (.+?): ", line))}
        faults = [
            (number, found) for number, line in enumerate(lines) if (found := re.match(r"FAULT  (.+?): (.+)", line))
        ]
        self.says = {found[1]: found[2] for _, found in faults}
        self.advice = {found[1]: lines[number + 1].removeprefix("       → ") for number, found in faults}
        assert all(self.advice.values())
        assert len(self.good) + 2 * len(faults) == len(lines), said
        assert code == (1 if faults else 0), said + err

    @property
    def faults(self) -> set[str]:
        return set(self.says)


async def doctor(house: House, **env: str) -> Report:
    return Report(*await house.command("doctor", **env))


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username or ''}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


@asynccontextmanager
async def a_silent_port() -> AsyncIterator[int]:
    """What connects there is taken and never answered."""
    kept: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: kept.append(writer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in kept:
            writer.close()


async def test_a_stopped_server_is_named_and_the_others_are_looked_at(house: House) -> None:
    async with house.without("postgres"), house.without("valkey"):
        first = await doctor(house)
    async with house.without("nats"), house.without_mail():
        second = await doctor(house)
    assert first.faults & SERVERS == {"postgresql", "redis"}
    assert second.faults & SERVERS == {"nats", "smtp"}
    for report in (first, second):
        assert report.good >= SERVERS - report.faults
        assert all(report.advice[what].startswith("start it") for what in report.faults & SERVERS)


async def test_frozen_servers_are_named_side_by_side_in_bounded_time(house: House) -> None:
    async with a_silent_port() as port:
        with ExitStack() as stack:
            for name in ("postgres", "nats", "valkey"):
                stack.enter_context(house.frozen(name))
            began = time.monotonic()
            report = await doctor(house, SMTP_URL=f"smtp://user:secret@127.0.0.1:{port}")
            assert time.monotonic() - began < EXAMINATION_S + START_S
    assert report.faults == SERVERS | {"schema owner"}
    assert report.says["postgresql"].endswith("no answer in time")
    assert report.says["smtp"].endswith("no answer in time")
    assert all(report.advice[what].startswith("start it") for what in SERVERS)


async def test_wrong_credentials_are_told_from_a_server_that_is_away(house: House) -> None:
    names = ("DATABASE_URL", "DATABASE_OWNER_URL", "NATS_URL", "REDIS_URL", "SMTP_URL")
    wrong = {name: with_password(house.env[name], "marker") for name in names}
    code, said, err = await house.command("doctor", **wrong)
    assert "marker" not in said + err
    report = Report(code, said, err)
    assert report.faults == SERVERS | {"schema owner"}
    for what, name in zip(("postgresql", "schema owner", "nats", "redis", "smtp"), names, strict=True):
        assert re.search(rf"correct .*password.* in {name}", report.advice[what]), report.advice[what]


async def test_a_database_that_is_not_there_and_a_user_of_the_bus_without_rights(house: House) -> None:
    report = await doctor(
        house,
        DATABASE_URL=urlsplit(house.at.database_url)._replace(path="/absent").geturl(),
        NATS_URL=house.at.nats_urls["gateway"],
    )
    assert report.faults == {"postgresql", "jetstream"}
    assert "database's name in DATABASE_URL" in report.advice["postgresql"]
    assert "NATS_URL names the worker" in report.advice["jetstream"]


async def test_nats_without_jetstream_is_named(house: House) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(
        nats_server_program(), "-a", "127.0.0.1", "-p", str(port), stdout=quiet, stderr=quiet
    )
    try:
        await eventually(lambda: _answers(port), within_s=10, what="nats-server")
        report = await doctor(house, NATS_URL=f"nats://127.0.0.1:{port}")
    finally:
        server.terminate()
        await server.wait()
    assert report.faults == {"jetstream"}
    assert "enable JetStream" in report.advice["jetstream"]


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_every_setting_that_is_wrong_is_named_and_the_servers_are_still_looked_at(house: House) -> None:
    # tests/unit/test_settings.py has a wrong value for every setting; here it counts that the rest is looked at.
    async with a_silent_port() as taken:
        report = await doctor(
            house,
            USER_SERVICE_POOL_MIN="30",
            USER_SERVICE_ARGON2="strong",
            USER_SERVICE_MAIL_FROM="nobody",
            USER_SERVICE_LIMIT_LOGIN="often",
            USER_SERVICE_LOGLEVEL="debug",
            USER_SERVICE_KEYS_FILE=str(house.base / "absent.json"),
            PUBLIC_URL="http://accounts.example",
            REDIS_URL="redis://:marker@192.0.2.1/0",
            DATABASE_URL=house.at.database_owner_url,
            HTTP_PORT=str(taken),
        )
    settings = {
        "USER_SERVICE_POOL_MIN", "USER_SERVICE_ARGON2", "USER_SERVICE_MAIL_FROM", "USER_SERVICE_LIMIT_LOGIN",
        "PUBLIC_URL", "REDIS_URL",
    }  # fmt: skip
    assert report.faults >= {f"setting {name}" for name in settings} | {"settings", "keys", "role", "http"}
    assert {name for name in report.faults if name.startswith("setting ")} == {f"setting {name}" for name in settings}
    assert all(name in report.advice[f"setting {name}"] for name in settings)
    assert "USER_SERVICE_LOGLEVEL" in report.says["settings"]
    assert "keys init" in report.advice["keys"]
    assert "DATABASE_OWNER_URL" in report.advice["role"]
    assert "HTTP_PORT" in report.advice["http"]
    assert {"postgresql", "clock", "schema", "schema owner", "nats", "smtp"} <= report.good
    assert "redis" not in report.good


async def test_what_is_missing_is_named_and_the_rest_looked_at(house: House) -> None:
    report = await doctor(house, NATS_URL="", DATABASE_URL="", USER_SERVICE_KEYS_FILE="")
    assert report.faults == {"setting NATS_URL", "setting DATABASE_URL", "keys"}
    assert {"schema owner", "redis", "smtp"} <= report.good


async def look_at(name: str, what: str, settings: Settings) -> Finding:
    """The finding that hangs on one setting, without the time that the program takes to start."""
    nothing_else = dict.fromkeys(Settings.model_fields.keys() - {name}, ("not looked at",))
    [found] = [finding async for finding in examine(settings, nothing_else, "") if finding.what == what]
    return found


async def test_a_key_file_that_cannot_serve_is_named_with_what_to_do(house: House, tmp_path: Path) -> None:
    whole = (house.base / "keys.json").read_text()
    open_to_all, damaged, short = tmp_path / "open.json", tmp_path / "damaged.json", tmp_path / "short.json"
    for path, text in ((open_to_all, whole), (damaged, whole[:-40]), (short, "{}")):
        path.touch(mode=0o600)
        path.write_text(text)
    open_to_all.chmod(0o644)
    for path, do in ((open_to_all, "chmod 600"), (damaged, "backup"), (short, "backup"), (tmp_path, "read it")):
        keys = await look_at("keys_file", "keys", settings_of(house.at.database_url, keys_file=path))
        assert not keys.good
        assert str(path) in keys.says
        assert do in keys.advice


async def test_a_list_of_breached_passwords_that_cannot_be_searched_is_named(house: House, tmp_path: Path) -> None:
    sorted_, shuffled, empty = tmp_path / "sorted", tmp_path / "shuffled", tmp_path / "empty"
    sorted_.write_text("0" * 40 + ":7\n" + "F" * 40 + ":1\n")
    shuffled.write_text("F" * 40 + "\n" + "0" * 40 + "\n")
    empty.touch()

    async def look(path: Path) -> Finding:
        settings = settings_of(house.at.database_url, breached_passwords_file=path)
        return await look_at("breached_passwords_file", "breached passwords", settings)

    assert (await look(sorted_)).good
    for path, says in ((shuffled, "sorted"), (empty, "empty"), (tmp_path / "absent", "No such file")):
        found = await look(path)
        assert not found.good
        assert "USER_SERVICE_BREACHED_PASSWORDS_FILE" in found.says
        assert says in found.says
        assert "docs/deploy.md" in found.advice


async def test_it_says_who_answers_and_which_groups_nobody_runs(house: House) -> None:
    nothing_else = dict.fromkeys(Settings.model_fields.keys() - {"nats_url"}, ("not looked at",))
    settings = settings_of(house.at.database_url)

    async def says(nats_url: str) -> dict[str, str]:
        return {finding.what: finding.says async for finding in examine(settings, nothing_else, nats_url)}

    urls = (house.env["NATS_URL"], house.at.nats_urls["operator"])
    async with house.run("requests", "email"):
        for url in urls:
            assert (await says(url))["requests"] == "answered"

            async def groups_are_told_apart(url: str = url) -> bool:  # of two pulls, one may just be over
                return (await says(url))["groups"].startswith("nobody takes what comes for audit, cache, jobs; ")

            await eventually(groups_are_told_apart, within_s=10, what="the groups")
    for found in [await says(url) for url in urls]:
        assert found["requests"].startswith("nobody answers")
        assert found["groups"].startswith("nobody takes what comes for email, audit, cache, jobs; ")


async def test_what_waits_too_long_to_be_announced_and_a_stream_that_fills_are_faults(house: House) -> None:
    async with house.run("requests"), house.gateway() as client, database(house.ready) as rows:
        await Ledger().register(client, emails(1), at_once=1)
        await rows.execute("UPDATE outbox SET created_at = now() - interval '1 minute'")
        await rows.execute(_LETTER)
        async with house.worker() as nc:
            config = (await nc.jetstream().stream_info("USER_DEAD_LETTERS")).config
            await nc.jetstream().update_stream(replace(config, max_bytes=10_000))
            await nc.jetstream().publish("users.dead-letters.email.None.1", b"x" * 8_500)
        report = await doctor(house)
        await rows.execute("DELETE FROM dead_letters WHERE reason = 'worker_died' AND subject = 'x'")

        async def all_are_announced() -> bool:
            return not await rows.fetchval("SELECT EXISTS (SELECT FROM outbox)")

        async with house.run("relay"):
            await eventually(all_are_announced, within_s=20, what="a relay to announce them")
    assert re.match(r"\d+ events wait to be announced, the oldest for 6\d s", report.says["relay"])
    assert "user-service run relay" in report.advice["relay"]
    assert report.says["letters"].startswith("1 wait to be announced")
    assert re.match(r"[89]\d% of 10000 bytes", report.says["stream USER_DEAD_LETTERS fills"])


_LETTER = """
INSERT INTO dead_letters (id, group_name, event_id, n, event_type, reason, error, message, subject, body, headers,
    attempts, deliveries, stream_sequence, created_at)
VALUES (gen_random_uuid(), 'email', gen_random_uuid(), 1, 'UserLogin', 'worker_died', 'WorkerDied', '', 'x', 'x', '{}',
    '[]', 1, 1, now() - interval '1 minute')"""


@asynccontextmanager
async def the_ledger(house: House, *statements: str) -> AsyncIterator[None]:
    """The list of applied migrations is another one while the block lasts."""
    owner = await asyncpg.connect(house.at.database_owner_url)
    try:
        rows = await owner.fetch("SELECT * FROM schema_migrations")
        for statement in statements:
            await owner.execute(statement)
        yield
        await owner.execute("TRUNCATE schema_migrations")
        await owner.copy_records_to_table("schema_migrations", records=[tuple(row) for row in rows])
    finally:
        await owner.close()


async def test_a_schema_of_another_release_is_named_with_what_to_do(house: House) -> None:
    newer = "INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, '9999_later.sql', '')"
    faults: Mapping[str, tuple[str, str]] = {
        "DELETE FROM schema_migrations WHERE version = 1": ("too old", "user-service migrate"),
        newer: ("9999", "run the newer release"),
        "UPDATE schema_migrations SET checksum = '' WHERE version = 1": ("was changed", "restore it"),
    }
    for statement, (says, do) in faults.items():
        async with the_ledger(house, statement):
            schema = await look_at("database_url", "schema", settings_of(house.at.database_url))
        assert not schema.good
        assert says in schema.says
        assert do in schema.advice


async def test_what_was_changed_by_hand_is_named_and_put_right_at_the_next_start(house: House) -> None:
    async with house.run("audit"):
        found = await durable(house, "email")
    assert found
    assert isinstance(found.config, ConsumerConfig)
    async with house.worker() as nc:
        js = nc.jetstream()
        await js.add_consumer("USER_EVENTS", replace(found.config, ack_wait=7, max_deliver=3))
        await js.delete_consumer("USER_EVENTS", "cache")
        stream = (await js.stream_info("USER_EVENTS")).config
        await js.update_stream(replace(stream, max_age=3600))
        await js.delete_stream("USER_DEAD_LETTERS")

    code, said, _ = await house.command("doctor", "--json")
    faults = {finding["what"]: finding for finding in json.loads(said) if not finding["good"]}
    assert code == 1
    assert {what: finding["says"].partition(",")[0] for what, finding in faults.items()} == {
        "consumer email: ack_wait": "is 7.0",
        "consumer email: max_deliver": "is 3",
        "consumer cache": "is missing",
        "stream USER_EVENTS: max_age": "is 3600.0",
        "stream USER_DEAD_LETTERS": "is missing",
    }
    assert all("user-service run" in finding["advice"] for finding in faults.values())

    async with house.run("audit") as run:
        mended = await durable(house, "email")
        report = await doctor(house, HTTP_PORT=str(run.http_port))
    assert not report.faults, report.says
    assert "http" in report.good
    assert mended
    assert (mended.config.ack_wait, mended.config.max_deliver) == (ACK_WAIT_S, found.config.max_deliver)
