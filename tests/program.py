"""The program as an operator starts it: a child process with a ready file, killed, stopped and started again."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests import canary, forking

RACE_ROUNDS = int(os.environ.get("RACE_ROUNDS", "10"))
"""How often a race is run; `make races` runs each fifty times. A multiple of ten."""
FAST = {
    # Load tests count what the service does, not what a hash costs or a limit forbids.
    "USER_SERVICE_RATE_LIMITS": "off",
    "USER_SERVICE_ANSWER_MS_STEP": "0",
    "USER_SERVICE_ARGON2": "m=1024,t=1,p=1",
    "USER_SERVICE_LOG_FORMAT": "json",
    "USER_SERVICE_LOG_LEVEL": "info",
}


class Dev:
    """`user-service dev` on a data directory of its own."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        self.data_dir = data_dir
        self.ready_file = data_dir / "ready.json"
        self.log_file = data_dir.with_suffix(".log")
        self._env = FAST | {forking.PATIENCE_S: "10"} | env
        self._process: forking.Started | asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "Dev":
        await self.start()
        return self

    async def __aexit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Stop it; and where nothing went wrong before, look whether it has told a secret anywhere."""
        if error is not None or self._process_ended():
            await self.stop()
            return
        ready = self.ready
        search = canary.Search(self.data_dir.parent)
        found = await search.found_in_service(ready)
        found |= await search.found_in_servers(ready["databaseUrl"], ready["redisUrl"])
        await self.stop()
        found |= search.found_in_files()
        assert not found, sorted(found)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ready(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ready_file.read_text())
        return found

    async def start(self) -> None:
        """Start, and wait until all groups serve."""
        self.ready_file.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            words, env = ("dev", "--data-dir", str(self.data_dir)), clean_environment() | self._env
            self._process = await forking.start(words, env=env, out=log.fileno(), err=log.fileno())
        await until(lambda: self.ready_file.exists() or self._process_ended(), within_s=60, what="dev to be ready")
        assert self.ready_file.exists(), self.log_file.read_text()[-4000:]

    def _process_ended(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        process = self._process
        assert process is not None
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                await process.wait()
        return process.returncode or 0

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


def clean_environment() -> dict[str, str]:
    """This process' environment without any setting of the service: tests say what they mean."""
    ours = ("USER_SERVICE_", "NATS_URL", "DATABASE_", "REDIS_URL", "SMTP_URL", "PUBLIC_URL", "HTTP_PORT")
    root = str(Path(__file__).parents[1])
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | {"PYTHONPATH": root}


async def until(condition: Callable[[], object], *, within_s: float, what: str) -> None:
    """Wait for a condition, and fail when it has not come in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, f"waited {within_s:g} s for {what}"
        await asyncio.sleep(0.02)


async def eventually(condition: Callable[[], Awaitable[object]], *, within_s: float, what: str) -> None:
    """Wait for a condition that has to be asked for, and fail when it has not come in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not await condition():
        assert loop.time() < deadline, f"waited {within_s:g} s for {what}"
        await asyncio.sleep(0.05)


async def command(*words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run `user-service …` to its end: exit code, standard output, standard error."""
    with TemporaryFile() as out, TemporaryFile() as err:
        whole = clean_environment() | dict(env or {})
        process = await forking.start(words, env=whole, out=out.fileno(), err=err.fileno(), cwd=cwd)
        try:
            async with asyncio.timeout(60):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            raise
        for file in (out, err):
            file.seek(0)
        return code, out.read().decode(), err.read().decode()
