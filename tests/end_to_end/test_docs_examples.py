"""Every code block of the pages for those who call and those who listen is run, or held against what is so."""

import asyncio
import json
import re
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.events import Event, Metadata, ProfileUpdated
from contracts.wire import Pagination, Wire
from tests.gateway import Gateway, database, stored_events
from tests.program import Dev, clean_environment

LISTENERS = ("people.py", "names.py")
DOCS = Path(__file__).parents[2] / "docs"


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Every fenced block with its language, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def set_up(page: str, names: Sequence[str], folder: Path, dev: Dev) -> None:
    """A folder as a reader has it: `.venv`, the `.dev` of a running service, the page's programs under their names."""
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".dev").symlink_to(dev.data_dir)
    programs = [text for language, text in blocks_of(page) if language == "python"]
    for program, file in zip(programs, names, strict=True):
        (folder / file).write_text(program, encoding="utf-8")


async def _start(command: str, folder: Path) -> asyncio.subprocess.Process:
    environment = clean_environment() | {"PYTHONWARNINGS": "error"}
    return await asyncio.create_subprocess_exec(
        "sh", "-euc", f"exec {command}", cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def _said_by(command: str, folder: Path) -> str:
    process = await _start(command, folder)
    async with asyncio.timeout(30):
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


async def test_the_gateway_of_the_docs_calls_repeats_and_caches(dev: Dev, tmp_path: Path) -> None:
    shown, command, program, printed = blocks_of("gateway.md")
    assert [shown[0], command[0], program[0], printed[0]] == ["json", "sh", "python", "text"]
    set_up("gateway.md", ["caller.py"], tmp_path, dev)
    assert await _said_by(command[1], tmp_path) == printed[1]


async def test_the_listener_of_the_docs_keeps_its_table(dev: Dev, client: Gateway, tmp_path: Path) -> None:
    shown, command, look, program, *others = blocks_of("listener.md")
    assert [shown[0], command[0], look[0], program[0]] == ["json", "sh", "sh", "python"]
    assert [language for language, _ in others] == ["sh", "python"]
    set_up("listener.md", LISTENERS, tmp_path, dev)
    found = await client.signed_in()
    user_id, token = found["user"]["id"], found["tokens"]["accessToken"]
    first = await _start(command[1], tmp_path)
    await _until_said(first, f"{user_id} 1 UserRegistered applied")
    await client.call("profile.update", access=token, displayName="The Countess")
    await _until_said(first, f"{user_id} 5 ProfileUpdated applied")
    await _stop(first)

    # What comes while it is away waits for it, and nothing is lost or done twice.
    await client.call("profile.update", access=token, displayName="Augusta")
    again = await _start(command[1], tmp_path)
    await _until_said(again, f"{user_id} 6 ProfileUpdated applied")
    await _stop(again)
    people = sqlite3.connect(tmp_path / "people.db")
    try:
        assert people.execute("SELECT version, name FROM people WHERE user_id = ?", (user_id,)).fetchall() == [
            (6, "Augusta")
        ]
    finally:
        people.close()
    assert f"('{user_id}', 6, 'Augusta')" in (await _said_by(look[1], tmp_path)).splitlines()


async def test_the_faststream_listener_of_the_docs_hears_of_every_event(
    dev: Dev, client: Gateway, tmp_path: Path
) -> None:
    set_up("listener.md", LISTENERS, tmp_path, dev)
    found = await client.signed_in()
    user_id, token = found["user"]["id"], found["tokens"]["accessToken"]
    command = blocks_of("listener.md")[4][1]
    first = await _start(command, tmp_path)
    await _until_said(first, f"{user_id} 4 UserLogin")
    await client.call("profile.update", access=token, displayName="The Countess")
    await _until_said(first, f"{user_id} 5 ProfileUpdated")
    await _stop(first)


def _names(model: type[Wire]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


async def test_the_replies_that_the_docs_show_have_the_fields_of_real_ones(client: Gateway) -> None:
    decoder, text, shown = json.JSONDecoder(), blocks_of("gateway.md")[0][1], []
    while text.strip():
        reply, end = decoder.raw_decode(text.lstrip())
        shown.append(reply)
        text = text.lstrip()[end:]
    one, page, error = shown
    real = (await client.call("auth.jwks")).body
    wrong = (await client.call("auth.resend-verification", email="nobody")).body
    listed = (await client.call("admin.users.list", access=await client.admin(), limit=1)).body
    assert one.keys() == real.keys()
    assert one["meta"].keys() == real["meta"].keys()
    assert page.keys() == listed.keys()
    assert page["pagination"].keys() <= listed["pagination"].keys() <= _names(Pagination)
    assert error.keys() == wrong.keys()
    assert error["error"].keys() == wrong["error"].keys()
    assert error["error"]["details"][0].keys() == wrong["error"]["details"][0].keys()


async def test_the_message_that_the_docs_show_is_like_a_real_one(dev: Dev, client: Gateway) -> None:
    found = await client.signed_in()
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    await client.call("profile.update", access=found["tokens"]["accessToken"], headers=headers, displayName="Ada")
    real: dict[str, Any] = {}
    async with asyncio.timeout(10):
        while not real:
            events = await stored_events(dev.ready, f"users.events.v1.ProfileUpdated.{found['user']['id']}")
            real = events[0] if events else {}
    shown = json.loads(blocks_of("listener.md")[0][1])
    assert shown.keys() <= real.keys() & _names(Event)
    assert shown["data"].keys() == real["data"].keys() == _names(ProfileUpdated)
    assert shown["metadata"].keys() <= _names(Metadata)

    page = (DOCS / "listener.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    listed = {name for row in rows for name in re.findall("`(.+?)`", row)}
    assert listed == {name for name in real["headers"] if not name.startswith("Nats-Expected-")}


async def test_the_queries_for_operators_run_as_they_are_printed(dev: Dev) -> None:
    [(language, text)] = blocks_of("operations.md")
    assert language == "sql"
    async with database(dev.ready) as rows:
        for statement in filter(str.strip, text.split(";")):
            await rows.fetch(statement)


async def _until_said(process: asyncio.subprocess.Process, wanted: str) -> None:
    assert process.stdout
    said = ""
    async with asyncio.timeout(30):
        while wanted not in said:
            line = await process.stdout.readline()
            assert line, said
            said += line.decode()


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGINT)  # Ctrl-C
    async with asyncio.timeout(30):
        await process.communicate()
