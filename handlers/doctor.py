"""`user-service doctor`: everything the service needs, asked one by one, each fault with what to do about it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg
from nats.aio.client import Client
from nats.errors import Error as NatsError

from adapters.bus_client import BusFailure, bus_client
from adapters.keys import BadKeys, read_keys
from adapters.migrations import MigrationRefused, status
from adapters.nats import differences
from adapters.redis import Redis, RedisAway
from adapters.server_urls import where
from adapters.settings import Settings, unknown_variables
from adapters.smtp import Mailer, MailUnavailable
from handlers.app import EVENT_GROUPS

CLOCK_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `advice` says what to do where it is not well."""

    what: str
    good: bool
    says: str
    advice: str = ""


async def examine(settings: Settings, nats_url: str) -> AsyncIterator[Finding]:
    """Every finding, in the order in which things depend on each other."""
    yield _variables()
    yield _keys(settings)
    async for finding in _database(settings):
        yield finding
    async for finding in _bus(settings, nats_url):
        yield finding
    yield await _redis(settings)
    yield await _smtp(settings)


def _variables() -> Finding:
    unknown = unknown_variables()
    if unknown:
        says = f"no setting of this release: {', '.join(unknown)}"
        return Finding("settings", False, says, "correct the name; `user-service config` lists all there are")
    return Finding("settings", True, "all are known and valid")


def _keys(settings: Settings) -> Finding:
    path = settings.keys_file
    if path is None:
        return Finding("keys", False, "no key file", "set USER_SERVICE_KEYS_FILE; `user-service keys init` makes one")
    try:
        read_keys(path)
    except BadKeys as error:
        return Finding("keys", False, str(error), "restore the file from its backup; new keys end all sessions")
    return Finding("keys", True, str(path))


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    url = settings.database_url.get_secret_value()
    try:
        connection = await asyncpg.connect(url, timeout=3, command_timeout=5)
    except (OSError, TimeoutError, asyncpg.PostgresError, ValueError) as error:
        said = f"{where(url)}: {type(error).__name__}"
        yield Finding("postgresql", False, said, "start it, or correct DATABASE_URL (role, password, database, TLS)")
        return
    try:
        version = await connection.fetchval("SHOW server_version")
        yield Finding("postgresql", True, f"{where(url)}, version {version}")
        there = await connection.fetchval("SELECT clock_timestamp()")
        apart_s = abs((datetime.now(UTC) - there).total_seconds())
        yield Finding(
            "clock", apart_s <= CLOCK_S_MAX, f"{apart_s:.2f} s from PostgreSQL's", "run a time service on both machines"
        )
    finally:
        await connection.close(timeout=3)
    yield await _schema(url)


async def _schema(url: str) -> Finding:
    advice = "run `user-service migrate` as the schema's owner (DATABASE_OWNER_URL)"
    try:
        found = await status(url)
    except MigrationRefused as error:
        return Finding("schema", False, str(error), advice)
    except asyncpg.PostgresError as error:
        return Finding("schema", False, type(error).__name__, advice)
    waiting = [migration.name for migration in found if migration.applied_at is None]
    if waiting:
        return Finding("schema", False, f"not applied yet: {', '.join(waiting)}", advice)
    return Finding("schema", True, f"at {found[-1].name}")


async def _bus(settings: Settings, nats_url: str) -> AsyncIterator[Finding]:
    try:
        async with bus_client(nats_url) as client:
            server = str(client.connected_server_version).strip("<>").removeprefix("nats server v")
            yield Finding("nats", True, f"{where(nats_url)}, version {server}, max_payload {client.max_payload}")
            for finding in await _streams(client, settings):
                yield finding
    except BusFailure as error:
        yield Finding("nats", False, str(error), "start it, or correct NATS_URL (user, password, TLS)")


async def _streams(client: Client, settings: Settings) -> list[Finding]:
    advice = "start `user-service run`: it makes and mends streams and consumers; see who changes them by hand"
    try:
        async with asyncio.timeout(5):
            found = await differences(client.jetstream(), settings, EVENT_GROUPS)
    except (NatsError, TimeoutError) as error:
        return [Finding("jetstream", False, type(error).__name__, "enable JetStream, and let this user ask for it")]
    if not found:
        return [Finding("jetstream", True, "streams and consumers are as this release wants them")]
    return [Finding(item.what, False, f"is {item.found}, not {item.wanted}", advice) for item in found]


async def _redis(settings: Settings) -> Finding:
    if settings.redis is None:
        return Finding("redis", True, "not configured: the service runs without")
    client = Redis(settings.redis)
    try:
        await client.ping()
    except RedisAway as error:
        said = f"{where(settings.redis)}: {type(error.__cause__).__name__}"
        return Finding("redis", False, said, "start it or correct REDIS_URL; until then limits are kept per process")
    finally:
        await client.close()
    return Finding("redis", True, where(settings.redis))


async def _smtp(settings: Settings) -> Finding:
    url = settings.smtp_url.get_secret_value()
    mailer = Mailer(url, sender=settings.mail_from, allow_plaintext=settings.allow_plaintext)
    try:
        await mailer.probe()
    except MailUnavailable as error:
        return Finding("smtp", False, f"{where(url)}: {error}", "start it or correct SMTP_URL; mail waits meanwhile")
    finally:
        await mailer.close()
    return Finding("smtp", True, where(url))
