"""`user-service dev`: the whole service on embedded servers, in one process, with everything it has made said."""

import asyncio
import json
import os
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
import structlog
from pydantic import SecretStr

from adapters.bus_client import BusFailure, bus_client, request
from adapters.embedded import Addresses, EmbeddedServers
from adapters.embedded_state import EmbeddedFailure, port_is_free
from adapters.environment import read_settings
from adapters.hashing import Hasher
from adapters.keys import BadKeys, Keys, read_keys, write_keys
from adapters.mail_sink import MailSink
from adapters.migrations import migrate
from adapters.personal_data import PersonalData
from adapters.postgres import Database, role_of
from adapters.private_files import write_private
from adapters.settings import Settings
from handlers.app import ALL_GROUPS, serve
from handlers.console.app import Served, Wishes
from handlers.console.first_admin import KnownAdmin
from handlers.console.inbox import inbox_routes
from handlers.operators import NewAdmin, create_admin
from handlers.pages import Ask, link_pages
from handlers.terminal import DEFAULT_DIR

log = structlog.get_logger()

ADMIN_EMAIL = "admin@example.com"


@dataclass(frozen=True, slots=True)
class Ready:
    """What the ready file says."""

    addresses: Addresses
    smtp_url: str
    mail_dir: Path
    http_url: str
    console: Served
    admin_password: str

    def as_json(self) -> str:
        found = self.addresses
        return json.dumps(
            {
                "natsUrl": found.nats_url,
                "natsUrls": dict(found.nats_urls),
                "databaseUrl": found.database_url,
                "databaseOwnerUrl": found.database_owner_url,
                "redisUrl": found.redis_url,
                "smtpUrl": self.smtp_url,
                "mailDir": str(self.mail_dir),
                "httpUrl": self.http_url,
                "consoleUrl": self.console.url,
                "admin": {"email": ADMIN_EMAIL, "password": self.admin_password},
            },
            indent=2,
        )


async def dev(data_dir: Path, ready_file: Path, *, stop: asyncio.Event, say: Callable[[str], None]) -> None:
    """Serve until `stop`. Raises `EmbeddedFailure` with one clear line when something cannot be started."""
    _require_free_port(os.environ.get("HTTP_PORT"))
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(EmbeddedServers(data_dir, log=log.info))
        ready_file.unlink(missing_ok=True)  # noqa: ASYNC240 - of a run that was killed; nothing is served yet
        stack.callback(ready_file.unlink, missing_ok=True)
        watching = asyncio.create_task(servers.watch())
        stack.push_async_callback(_end, watching)

        mail_dir = data_dir / "mail"
        sink = await stack.enter_async_context(
            MailSink(mail_dir, "dev", servers.state.secret("smtp"), servers.state.port("smtp"))
        )
        settings = _settings(servers, sink)
        await migrate(servers.addresses.database_owner_url, app_role=role_of(servers.addresses.database_url))
        keys = await _keys(data_dir, servers.addresses.database_url)
        admin_password = f"{servers.state.secret('admin')}-Aa1"
        await _make_admin(settings, keys, admin_password)

        pages = link_pages(_asking(servers.addresses.nats_urls["gateway"]))

        consoles: list[Served] = []
        wishes = Wishes(
            consoles.append,
            known=KnownAdmin(ADMIN_EMAIL, SecretStr(admin_password)),
            inbox=partial(inbox_routes, mail_dir=mail_dir),
        )

        async def on_ready(port: int | None) -> None:
            if stop.is_set():
                return
            http_url = f"http://127.0.0.1:{port}"
            ready = Ready(servers.addresses, sink.url, mail_dir, http_url, consoles[0], admin_password)
            write_private(ready_file, ready.as_json())
            say(greeting(ready, ready_file))

        await serve(settings, keys, ALL_GROUPS, stop=stop, on_ready=on_ready, pages=pages, wishes=wishes)


def _require_free_port(wanted: str | None) -> None:
    """Said at once, before anything is started for nothing."""
    if not wanted:
        return
    if not wanted.isascii() or not wanted.isdigit() or not 0 < int(wanted) < 65536:
        raise EmbeddedFailure("HTTP_PORT is no port number; leave it out for a free one")
    if not port_is_free(int(wanted)):
        raise EmbeddedFailure(f"HTTP_PORT {wanted} is taken; set another, or leave it out for a free one")


def _settings(servers: EmbeddedServers, sink: MailSink) -> Settings:
    """The environment's settings, with the embedded servers in the place of others."""
    port = os.environ.get("HTTP_PORT") or servers.state.port("http")
    found = servers.addresses
    return read_settings(
        nats_url=found.nats_worker_url,
        database_url=found.database_url,
        database_owner_url=found.database_owner_url,
        redis_url=found.redis_url or "none",
        smtp_url=sink.url,
        http_port=port,
        console_port=os.environ.get("USER_SERVICE_CONSOLE_PORT") or servers.state.port("console"),
        console_nats_url=found.nats_urls["operator"],
        public_url=os.environ.get("PUBLIC_URL", f"http://127.0.0.1:{port}"),
        environment=os.environ.get("USER_SERVICE_ENVIRONMENT", "development"),
        keys_file=None,
        admin_second_factor=os.environ.get("USER_SERVICE_ADMIN_SECOND_FACTOR", "false"),
    )


async def _keys(data_dir: Path, database_url: str) -> Keys:
    """The keys of this data, made with it: fresh ones could not open what is there."""
    path = data_dir / "keys.json"
    try:
        if not path.exists() and not await _holds_users(database_url):
            write_keys(path)
        return read_keys(path)
    except BadKeys as error:
        raise EmbeddedFailure(
            f"{path} is gone or damaged, and the data cannot be read without it: restore it"
        ) from error


async def _holds_users(database_url: str) -> bool:
    connection = await asyncpg.connect(database_url, timeout=5, command_timeout=5)
    try:
        return bool(await connection.fetchval("SELECT EXISTS (SELECT 1 FROM user_keys)"))
    finally:
        await connection.close(timeout=5)


async def _make_admin(settings: Settings, keys: Keys, password: str) -> None:
    database = await Database.connect(settings, name="user-service dev")
    hasher = Hasher(settings.argon2, threads=1, waiting_max=1)
    try:
        await create_admin(database, PersonalData(keys), hasher, NewAdmin(ADMIN_EMAIL, password))
    finally:
        hasher.close()
        await database.close()


def _asking(gateway_url: str) -> Ask:
    """Asks as a gateway does, over a connection of its own: the pages hold no other right than its."""

    async def ask(subject: str, body: dict[str, object]) -> dict[str, object]:
        try:
            async with bus_client(gateway_url) as client:
                reply, _ = await request(client, subject, json.dumps(body).encode(), headers={}, timeout_s=5)
        except BusFailure as error:
            return {"success": False, "error": {"message": str(error)}}
        return reply

    return ask


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def greeting(ready: Ready, ready_file: Path) -> str:
    """What the terminal says when everything serves: where, and what to paste first."""
    email = f"ada-{secrets.token_hex(2)}@example.com"  # the data outlives a stop: a fixed one would soon be taken
    body = (
        f'{{"email":"{email}","password":"Analytical-Engine-1843",'
        '"firstName":"Ada","lastName":"Lovelace","acceptTerms":true}'
    )
    named = "" if ready_file == (DEFAULT_DIR / "ready.json").absolute() else f" --ready-file {ready_file}"
    found = ready.addresses
    redis = f"127.0.0.1:{found.redis_port}" if found.redis_port else "none (the service runs without)"
    return f"""
user-service is ready.

  NATS        127.0.0.1:{found.nats_port}
  PostgreSQL  127.0.0.1:{found.database_port}
  Valkey      {redis}
  mail        {ready.mail_dir}
  HTTP        {ready.http_url}   /health  /health/ready  /metrics
  console     {ready.console.url}   (this link lets you in, once, for 15 minutes:)
              {ready.console.first_link}
  admin       {ADMIN_EMAIL}   (password and all URLs: {ready_file})

Try it from another terminal in this folder:

  .venv/bin/user-service call auth.register{named} '{body}'
  .venv/bin/user-service dev mail{named} --last --link      (a link to open in a browser)
"""
