"""What the embedded servers keep between two starts: the lock on their directory, secrets and ports."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.private_files import write_private

LOOPBACK = "127.0.0.1"

# Below the kernels' ephemeral ranges, so that no outgoing connection takes a port while its server is down.
_PORTS = range(15000, 32000)
_PORT_TRIES_MAX = 200


class EmbeddedFailure(Exception):
    """An embedded server cannot start or stay up; the message is one line for a person."""


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: connections of the last run that still wait out their time do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def make_private(directory: Path) -> None:
    """Make a directory that only its owner may enter; what stands in the way is an `EmbeddedFailure`."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "no right to write", str(directory))
    except OSError as error:
        raise EmbeddedFailure(f"cannot use {directory} as a data directory: {error.strerror}") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for this process; the kernel lets go of it even when the process is killed."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise EmbeddedFailure(
                f"{directory} is in use by another process (pid {holder}): stop that, or use another --data-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class KeptState:
    """Secrets and ports by name, made once and kept in `credentials.json` for the next start."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "credentials.json"
        self._secrets: dict[str, str] = {}
        self._ports: dict[str, int] = {}
        self._load()

    def secret(self, name: str) -> str:
        """Return the secret of this name, made at random when it is first asked for."""
        if name not in self._secrets:
            # A leading letter: nats-server would read a value that begins with a digit as a number.
            self._secrets[name] = f"s{secrets.token_urlsafe(24)}"
            self._save()
        return self._secrets[name]

    def port(self, name: str, wanted: int | None = None) -> int:
        """Return a free loopback port: the wanted one or none at all, else the last one, else a new one."""
        if wanted is not None:
            if not port_is_free(wanted):
                raise EmbeddedFailure(f"port {wanted} for {name} is taken")
            return self._keep_port(name, wanted)
        kept = self._ports.get(name)
        if kept is not None and port_is_free(kept):
            return kept
        return self._keep_port(name, self._new_port())

    def _keep_port(self, name: str, port: int) -> int:
        self._ports[name] = port
        self._save()
        return port

    def _new_port(self) -> int:
        for _ in range(_PORT_TRIES_MAX):
            port = secrets.choice(_PORTS)
            if port not in self._ports.values() and port_is_free(port):
                return port
        raise EmbeddedFailure(f"no free port found between {_PORTS.start} and {_PORTS.stop}")

    def _load(self) -> None:
        if not self._path.exists():
            return
        try:
            kept = json.loads(self._path.read_text("utf-8"))
            self._secrets = {str(name): str(value) for name, value in kept["secrets"].items()}
            self._ports = {str(name): int(value) for name, value in kept["ports"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EmbeddedFailure(
                f"{self._path} cannot be read ({type(error).__name__}): restore it, or use another data directory"
            ) from error

    def _save(self) -> None:
        write_private(self._path, json.dumps({"secrets": self._secrets, "ports": self._ports}, indent=1))
