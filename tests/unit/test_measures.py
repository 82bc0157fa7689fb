"""Which keys a process uses is told as it is, also while its key file is damaged."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.key_rotation import rotate
from adapters.keys import Keys, read_keys, write_keys
from adapters.telemetry import Metrics
from handlers.app import _keep_keys_read
from tests.program import eventually


@asynccontextmanager
async def reading(keys: Keys, metrics: Metrics) -> AsyncIterator[None]:
    task = asyncio.create_task(_keep_keys_read(keys, metrics))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_keys_in_force_coming_and_unreadable_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.app.RELOAD_S", 0.01)
    path, metrics = tmp_path / "keys.json", Metrics()
    write_keys(path)
    keys, good = read_keys(path), path.read_bytes()
    first = keys.ring("access").in_force

    def figure(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    async def usable_is(value: bool) -> None:
        async def told() -> bool:
            return figure("key_file_unusable") == (not value)

        await eventually(told, within_s=5, what="the figure of the key file")

    async def takes_over(kid: str) -> None:
        async def told() -> bool:
            return figure("key_in_force", purpose="access", kid=kid) == 1

        await eventually(told, within_s=5, what=f"{kid} to be in force")

    async with reading(keys, metrics):
        await takes_over(first)
        assert figure("key_takes_over_seconds", purpose="access") == 0
        path.write_text("{")
        await usable_is(False)
        assert figure("key_in_force", purpose="access", kid=first) == 1
        path.write_bytes(good)
        await usable_is(True)
        coming = rotate(path, "access", lead_s=1.0).kid

        async def is_coming() -> bool:
            return 0 < (figure("key_takes_over_seconds", purpose="access") or 0) <= 1

        await eventually(is_coming, within_s=5, what="the next key to be told of")
        await takes_over(coming)
        assert figure("key_in_force", purpose="access", kid=first) == 0
        assert figure("key_in_force", purpose="refresh", kid=keys.ring("refresh").in_force) == 1
