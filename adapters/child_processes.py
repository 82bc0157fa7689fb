"""Child processes that never outlive us: started, recognised after a crash, stopped within a limit."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from adapters.bound_children import LIBC, ending_with_us
from adapters.embedded_state import EmbeddedFailure
from adapters.private_files import write_private

STOP_LIMIT_SECONDS = 10.0

_CLONE_NEWUSER = 0x10000000
_MAPPED_ID = 1000
_LOG_BYTES_MAX = 20 * 1024 * 1024
_START_TIME_TOLERANCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is run; `identity` runs in the child before the program, to make it somebody else than root."""

    argv: tuple[str, ...]
    log_path: Path
    stop_signal: signal.Signals
    environment: Mapping[str, str]
    identity: Callable[[], None] | None = None


def enter_user_namespace() -> None:
    """Become an ordinary user in this process' eyes while files stay root's: for programs that refuse root."""
    user, group = os.geteuid(), os.getegid()
    if LIBC.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare refused")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_MAPPED_ID} {user} 1"),
        ("gid_map", f"{_MAPPED_ID} {group} 1"),
    ):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def user_namespaces_work() -> bool:
    """Try a user namespace in a child that does nothing else; containers often refuse it."""
    if sys.platform != "linux":
        return False
    try:
        tried = subprocess.run(["/bin/sh", "-c", "exit 0"], preexec_fn=enter_user_namespace, check=False, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return False
    return tried.returncode == 0


def identity_of(account: pwd.struct_passwd) -> Callable[[], None]:
    """Return what a child of root calls to become this system user."""

    def become() -> None:
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)

    return become


@contextmanager
def _log_for_appending(path: Path) -> Iterator[int]:
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Child:
    """One running program, in a session of its own so that Ctrl-C reaches only us."""

    def __init__(self, process: asyncio.subprocess.Process, command: Command) -> None:
        self._process = process
        self._command = command

    @classmethod
    async def start(cls, command: Command) -> Child:
        """Start the program with its output appended to the log; it dies with the thread that called this."""
        try:
            with _log_for_appending(command.log_path) as log:
                process = await asyncio.create_subprocess_exec(
                    *command.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(command.environment),
                    start_new_session=True,
                    preexec_fn=ending_with_us(command.stop_signal, command.identity),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedFailure(f"cannot run {command.argv[0]}: {error}") from error
        return cls(process, command)

    @property
    def pid(self) -> int:
        """The process id, of a stopped child too."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return await self._process.wait()

    async def stop(self, limit_seconds: float = STOP_LIMIT_SECONDS) -> None:
        """Ask it to end, and kill it when the limit has passed."""
        if self.exit_status is not None:
            return
        with suppress(ProcessLookupError):
            # A stopped process would not hear the first signal.
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(self._command.stop_signal)
        try:
            await asyncio.wait_for(self._process.wait(), limit_seconds)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class _Process(Protocol):
    """What we use of psutil, which ships no types."""

    pid: int

    def send_signal(self, sig: int) -> None: ...
    def wait(self, timeout: float) -> int | None: ...
    def kill(self) -> None: ...
    def create_time(self) -> float: ...
    def name(self) -> str: ...
    def status(self) -> str: ...


def _psutil() -> ModuleType | None:
    """The module that comes with the PostgreSQL wheel; without it survivors are left to the kernel's death signal."""
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None


def write_pid_file(path: Path, pid: int) -> None:
    """Note a process so that a later start knows it from a stranger with the same number."""
    psutil = _psutil()
    if psutil is None:
        return
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        noted = {"pid": pid, "started": process.create_time(), "program": process.name()}
        write_private(path, json.dumps(noted))


def end_survivor(path: Path, stop_signal: signal.Signals, limit_seconds: float = STOP_LIMIT_SECONDS) -> int | None:
    """Stop the noted process if it is still the same one; return its pid when there was one. Blocks up to the limit."""
    psutil = _psutil()
    if psutil is None or not path.exists():
        return None
    survivor = _noted_process(psutil, path)
    if survivor is not None:
        with suppress(psutil.NoSuchProcess):
            survivor.send_signal(signal.SIGCONT)
            survivor.send_signal(stop_signal)
            try:
                survivor.wait(limit_seconds)
            except psutil.TimeoutExpired:
                survivor.kill()
                survivor.wait(limit_seconds)
    path.unlink(missing_ok=True)
    return None if survivor is None else survivor.pid


def _noted_process(psutil: ModuleType, path: Path) -> _Process | None:
    try:
        noted = json.loads(path.read_text("utf-8"))
        process: _Process = psutil.Process(int(noted["pid"]))
        same_start = abs(process.create_time() - float(noted["started"])) < _START_TIME_TOLERANCE_SECONDS
        same_program = process.name() == noted["program"]
        alive = process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError, ValueError, KeyError, TypeError):
        return None
    return process if same_start and same_program and alive else None


def pids_working_in(directory: Path) -> list[int]:
    """List the processes whose working directory this is, such as what a killed postmaster left behind."""
    psutil = _psutil()
    if psutil is None:
        return []
    here = str(directory.resolve())
    return [process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == here]
