"""The servers' disk is full for a while: changes are refused in time, and what was acknowledged stands afterwards."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.house import open_house
from tests.faults.people import AWAY, BACK_S_MAX, UNVERIFIED, People

DISK_BYTES = 1500 * 2**20
FULL_S = 10
SMALL = {
    "USER_SERVICE_STREAM_BYTES_MAX": str(64 * 2**20),
    "USER_SERVICE_LETTERS_BYTES_MAX": str(64 * 2**20),
    "USER_SERVICE_AVATAR_BYTES_MAX": str(16 * 2**20),
    "USER_SERVICE_UPLOAD_BYTES_MAX": str(8 * 2**20),
}

pytestmark = pytest.mark.soak


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of its own; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    mounted = subprocess.run(words, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.timeout(300)
async def test_a_full_disk_refuses_changes_and_loses_nothing(small_disk: Path) -> None:
    async with open_house(small_disk / "house") as house:
        async with house.run(**UNVERIFIED, **SMALL) as run, house.gateway() as client:
            people = People(client, deadline_s=3)
            async with people.at_work(4):
                await people.until_answered(100, within_s=30)
                before = len(people.outcomes)
                await asyncio.to_thread(fill, small_disk / "ballast")
                await asyncio.sleep(FULL_S)
                told = Counter(outcome.code for outcome in people.outcomes[before:])
                (small_disk / "ballast").unlink()
                back_s = await people.until_answered(100, within_s=30)
            # A nats-server whose disk was full takes nothing into that stream until it is started again.
            await house.servers.stop_one("nats")
            await house.servers.start_one("nats")
            kept = await people.require_kept(house)
            assert not run.has_ended
        print(f"\nwhile full: {dict(told)}; back after {back_s:.1f} s; in all {dict(kept)}, nothing lost")
    assert told["SERVICE_UNAVAILABLE"] > 0
    assert set(told) <= AWAY | {"OK"}
    assert back_s < BACK_S_MAX


def fill(path: Path) -> None:
    with path.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**20))
                file.flush()
        except OSError:
            return
