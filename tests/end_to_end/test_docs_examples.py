"""The Python examples of the documents run as they are printed, beside a running `dev`."""

import asyncio
import re
import sqlite3
import sys
from pathlib import Path

from tests.gateway import Gateway
from tests.program import Dev, clean_environment

DOCS = Path(__file__).parents[2] / "docs"


def _example(page: str, folder: Path, dev: Dev) -> Path:
    """The one Python block of a page as a script, in a folder where `.dev` is the running one."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    (folder / ".dev").symlink_to(dev.data_dir)
    script = folder / "example.py"
    script.write_text(blocks[0], encoding="utf-8")
    return script


async def _start(script: Path) -> asyncio.subprocess.Process:
    environment = clean_environment() | {"PYTHONWARNINGS": "error"}
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), cwd=script.parent, env=environment, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


async def test_the_gateway_of_the_docs_calls_repeats_and_caches(dev: Dev, tmp_path: Path) -> None:
    process = await _start(_example("gateway.md", tmp_path, dev))
    async with asyncio.timeout(30):
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert said.startswith("VALIDATION_ERROR [")
    assert "('email', 'not_an_address')" in said
    assert "one effect: True\nGrace became Ada\nactive: False\n" in said


async def test_the_listener_of_the_docs_keeps_its_table(dev: Dev, client: Gateway, tmp_path: Path) -> None:
    found = await client.signed_in()
    user_id, token = found["user"]["id"], found["tokens"]["accessToken"]
    script = _example("listener.md", tmp_path, dev)
    first = await _start(script)
    await _until_said(first, f"{user_id} 1 UserRegistered applied")
    await client.call("profile.update", access=token, displayName="The Countess")
    await _until_said(first, f"{user_id} 5 ProfileUpdated applied")
    await _stop(first)

    # What comes while it is away waits for it, and nothing is lost or done twice.
    await client.call("profile.update", access=token, displayName="Augusta")
    again = await _start(script)
    await _until_said(again, f"{user_id} 6 ProfileUpdated applied")
    await _stop(again)
    people = sqlite3.connect(tmp_path / "people.db")
    try:
        assert people.execute("SELECT version, name FROM people WHERE user_id = ?", (user_id,)).fetchall() == [
            (6, "Augusta")
        ]
    finally:
        people.close()


async def _until_said(process: asyncio.subprocess.Process, wanted: str) -> None:
    assert process.stdout
    said = ""
    async with asyncio.timeout(30):
        while wanted not in said:
            line = await process.stdout.readline()
            assert line, said
            said += line.decode()


async def _stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    async with asyncio.timeout(10):
        await process.communicate()
