"""`audit verify` as an operator types it, beside a service that writes all the while."""

import asyncio
import json
from pathlib import Path

from tests.gateway import Gateway, database, new_email
from tests.program import Dev, command, eventually


async def test_a_log_that_grows_is_as_it_was_written(dev: Dev, client: Gateway) -> None:
    await client.register(new_email())
    async with database(dev.ready) as rows:

        async def is_sealed() -> bool:
            return bool(await rows.fetchval("SELECT count(*) > 0 FROM audit_seals"))

        await eventually(is_sealed, within_s=20, what="a seal")
    at = ("--ready-file", str(dev.ready_file))
    verifying = asyncio.create_task(command("audit", "verify", "--json", *at))
    while not verifying.done():
        await client.register(new_email())
    code, out, err = verifying.result()
    assert code == 0, out + err
    found = json.loads(out)
    assert (found["clean"], found["faults"], found["unnamed"]) == (True, [], 0)
    assert found["rows"] > 0
    assert found["seals"] > 0
    code, out, err = await command("audit", "verify", "--from", "1000000", *at)
    assert (code, "as they were sealed" in out) == (0, True), out + err


async def test_what_cannot_be_found_out_is_no_fault(tmp_path: Path) -> None:
    code, out, err = await command("audit", "verify", "--ready-file", str(tmp_path / "none.json"))
    assert (code, out) == (2, "")
    assert "no `user-service dev` runs here" in err
