"""One running `dev` for all stories that leave it as it was."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contracts.api import BY_SUBJECT
from tests.gateway import Gateway, database, gateway
from tests.program import Dev, command


@pytest_asyncio.fixture(scope="package")
async def dev(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    base: Path = tmp_path_factory.mktemp("dev")
    async with Dev(base / "data", USER_SERVICE_DELIVERY_PAUSES="0.2 0.4") as running:
        yield running
        await require_the_table_to_be_true(running)
        await require_the_audit_log_to_verify(running)


@pytest_asyncio.fixture
async def client(dev: Dev) -> AsyncIterator[Gateway]:
    async with gateway(dev.ready) as found:
        yield found


@pytest_asyncio.fixture(scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Dev]:
    """A `dev` whose rate limits are on; what is tested on it has addresses and sources of its own."""
    base: Path = tmp_path_factory.mktemp("limited")
    async with Dev(base / "data", USER_SERVICE_RATE_LIMITS="on") as running:
        yield running
        await require_the_table_to_be_true(running)


@pytest_asyncio.fixture
async def limited_client(limited: Dev) -> AsyncIterator[Gateway]:
    async with gateway(limited.ready) as found:
        yield found


async def require_the_audit_log_to_verify(dev: Dev) -> None:
    """Whatever a whole run has left there, by requests and groups, is told by events or is an act of ours."""
    code, out, err = await command("audit", "verify", "--ready-file", str(dev.ready_file))
    assert code == 0, out + err


async def require_the_table_to_be_true(dev: Dev) -> None:
    """What the table of operations says of events and audit rows, held against what a whole run has left."""
    subjects = {}
    for line in dev.log.splitlines():
        if line.startswith("{") and (entry := json.loads(line)).get("message") == "request":
            subjects[entry["requestId"]] = entry["subject"]
    async with database(dev.ready) as rows:
        events = await rows.fetch("SELECT DISTINCT metadata->>'requestId' AS request, type FROM events")
        acts = await rows.fetch("SELECT DISTINCT request_id AS request, action FROM audit_logs WHERE event_id IS NULL")
    left = {
        *((BY_SUBJECT[subjects[row["request"]]], "event", row["type"]) for row in events if row["request"] in subjects),
        *((BY_SUBJECT[subjects[row["request"]]], "act", row["action"]) for row in acts if row["request"] in subjects),
    }
    untold = [
        f"{operation.subject} left {name}"
        for operation, kind, name in left
        if name not in (operation.emits if kind == "event" else operation.audits)
    ]
    assert not untold, sorted(untold)
