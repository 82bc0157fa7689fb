"""SIGKILL in the middle of registrations, and a second start on the same directory: nothing acknowledged is lost."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest_asyncio

from tests.faults.ledger import (
    Ledger,
    emails,
    key_of,
    require_audit,
    require_mail,
    require_rows,
    require_stream,
    until_finished,
)
from tests.gateway import PASSWORD, gateway
from tests.program import Dev, until


@pytest_asyncio.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    async with Dev(tmp_path / "data", USER_SERVICE_DELIVERY_PAUSES="0.2 0.4 0.8") as running:
        yield running


def family(pid: int) -> list[psutil.Process]:
    """A process' children and theirs."""
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_dev_loses_nothing_that_it_acknowledged(dev: Dev) -> None:
    before, wanted, ledger = dev.ready, emails(500), Ledger()
    children = family(dev.pid)
    assert {"postgres", "nats-server", "valkey-server"} <= {child.name() for child in children}

    async with gateway(before) as client:
        old = await client.verified()
        registering = asyncio.create_task(ledger.register(client, wanted, at_once=20))
        await until(lambda: len(ledger.accepted) >= 200, within_s=30, what="200 registrations")
        await dev.kill()
        registering.cancel()  # what was asked last has no answer
        await asyncio.wait([registering])
    acknowledged = dict(ledger.accepted)
    assert 200 <= len(acknowledged) < 500
    assert not ledger.refused
    assert dev.ready_file.exists()

    await dev.start()
    assert dev.ready == before
    await until(lambda: not any(map(is_alive, children)), within_s=10, what="the killed dev's servers to end")

    async with gateway(dev.ready) as client:
        assert (await client.call("auth.login", email=old, password=PASSWORD)).ok
        await ledger.register(client, wanted, at_once=20)
    assert set(ledger.accepted) == set(wanted)
    for email, reply in acknowledged.items():
        assert ledger.accepted[email].data == reply.data
        assert ledger.accepted[email].headers["Idempotent-Replayed"] == "true", key_of(email)

    await until_finished(dev.ready, ledger.user_ids.values(), within_s=80)
    versions = await require_rows(dev.ready, ledger.user_ids)
    events = await require_stream(dev.ready, versions)
    await require_audit(dev.ready, (event for of_user in events.values() for event in of_user))
    require_mail(Path(dev.ready["mailDir"]), wanted, twice_max=4)


async def test_a_stop_is_clean_and_a_second_start_goes_on(dev: Dev) -> None:
    before = dev.ready
    children = family(dev.pid)
    async with gateway(before) as client:
        email = await client.verified()
    began = time.monotonic()
    assert await dev.stop() == 0
    assert time.monotonic() - began < 10
    assert not dev.ready_file.exists()
    assert not any(map(is_alive, children))

    await dev.start()
    assert dev.ready == before
    async with gateway(dev.ready) as client:
        assert (await client.call("auth.login", email=email, password=PASSWORD)).ok
        assert await client.admin()
