"""`user-service doctor`: everything the service needs, asked one by one, each fault with what to do about it."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from adapters.backlog import OUTBOX
from adapters.breached_passwords import BadList, BreachedPasswords
from adapters.bus_client import BusFailure, bus_client
from adapters.environment import advice_for, unknown_variables, variable_of
from adapters.keys import BadKeys, read_keys
from adapters.migrations import MigrationRefused, status
from adapters.redis import Redis, RedisAway
from adapters.server_urls import where
from adapters.settings import Settings
from adapters.smtp import Mailer, MailUnavailable
from adapters.stream_marks import WATCHED, Watched
from adapters.streams import TAKING_GROUPS, differences, durables, stream_configs
from handlers.freshness import BEAT_S, BEATS
from handlers.measured_service import SERVICE_NAME

CLOCK_S_MAX = 1.0
LATE_S = 30.0
"""So long an event, or a letter, may wait to be announced."""
FULL_MAX = 0.8
_PAGE_BYTES_MAX = 64 * 1024
WAIT_S = 3.0
"""How long one answer is waited for."""
EXAMINATION_S = 8.0
"""How long one server is looked at; they are looked at side by side."""

_REFUSED = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `advice` says what to do where it is not well."""

    what: str
    good: bool
    says: str
    advice: str = ""


Findings = AsyncIterator[Finding]


async def examine(settings: Settings, faults: Mapping[str, Sequence[str]], nats_url: str) -> Findings:
    """Every finding, in the order in which things depend on each other; no server is asked at a faulty address."""
    for finding in _settings(faults):
        yield finding
    if "keys_file" not in faults:
        yield _keys(settings)
    if settings.breached_passwords_file is not None and "breached_passwords_file" not in faults:
        yield _breached_passwords(settings.breached_passwords_file)
    examinations = {
        "database_url": ("postgresql", _database(settings)),
        "database_owner_url": ("schema owner", _owner(settings)),
        "nats_url": ("nats", _bus(settings, nats_url)),
        "redis_url": ("redis", _redis(settings)),
        "smtp_url": ("smtp", _smtp(settings)),
        "http_port": ("http", _http(settings)),
    }
    wanted = [_whole(what, variable_of(name), it) for name, (what, it) in examinations.items() if name not in faults]
    for findings in await asyncio.gather(*wanted):
        for finding in findings:
            yield finding


async def _whole(what: str, variable: str, examination: Findings) -> list[Finding]:
    """All that an examination finds: one that hangs or fails in a way that nobody thought of is a finding, too."""
    found: list[Finding] = []
    try:
        async with asyncio.timeout(EXAMINATION_S):
            async for finding in examination:
                found.append(finding)  # noqa: PERF401 - what came before a failure is kept
    except Exception as error:  # noqa: BLE001 - a doctor falls over nothing that it looks at
        found.append(Finding(what, False, _said(error), f"find out why it does not answer, or correct {variable}"))
    return found


def _said(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__


def _settings(faults: Mapping[str, Sequence[str]]) -> list[Finding]:
    found = [
        Finding(f"setting {variable_of(name)}", False, said, advice_for(name))
        for name in faults
        for said in faults[name]
    ]
    unknown = unknown_variables()
    if unknown:
        says = f"no setting of this release: {', '.join(unknown)}"
        found.append(Finding("settings", False, says, "correct the name; `user-service config` lists all there are"))
    return found or [Finding("settings", True, "all are known and valid")]


def _keys(settings: Settings) -> Finding:
    path = settings.keys_file
    if path is None:
        return Finding("keys", False, "no key file", "set USER_SERVICE_KEYS_FILE; `user-service keys init` makes one")
    try:
        read_keys(path)
    except BadKeys as error:
        return _finding("keys", error, "restore the file from its backup: new keys end all sessions")
    return Finding("keys", True, str(path))


def _breached_passwords(path: Path) -> Finding:
    try:
        BreachedPasswords(path).close()
    except BadList as error:
        return _finding("breached passwords", error, "")
    return Finding("breached passwords", True, str(path))


def _finding(what: str, error: Exception, advice: str) -> Finding:
    """A failure that says what is wrong and, after a semicolon, what to do."""
    says, _, ours = str(error).partition("; ")
    return Finding(what, False, says, ours or advice)


async def _database(settings: Settings) -> Findings:
    url = settings.database_url.get_secret_value()
    connection = await _connect("postgresql", url, "DATABASE_URL")
    if isinstance(connection, Finding):
        yield connection
        return
    try:
        version = await connection.fetchval("SHOW server_version")
        yield Finding("postgresql", True, f"{where(url)}, version {version}")
        there = await connection.fetchval("SELECT clock_timestamp()")
        apart_s = abs((datetime.now(UTC) - there).total_seconds())
        yield Finding(
            "clock", apart_s <= CLOCK_S_MAX, f"{apart_s:.2f} s from PostgreSQL's", "run a time service on both machines"
        )
        schema = await _schema(url)
        yield schema
        if schema.good:
            yield await _rights(connection)
            for finding in await streams_compared(connection):
                yield finding
            for finding in await _waiting(connection):
                yield finding
    finally:
        await connection.close(timeout=WAIT_S)


async def _connect(what: str, url: str, variable: str) -> asyncpg.Connection | Finding:
    """A connection, or why there is none."""
    try:
        return await asyncpg.connect(url, timeout=WAIT_S, command_timeout=WAIT_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        return Finding(what, False, f"{where(url)}: {_said(error)}", _connection_advice(error, variable))


def _connection_advice(error: Exception, variable: str) -> str:
    match error:
        case _ if isinstance(error, _REFUSED):
            return f"correct role and password in {variable}, and what pg_hba.conf allows them"
        case asyncpg.InvalidCatalogNameError():
            return f"correct the database's name in {variable}, or create it"
        case asyncpg.TooManyConnectionsError():
            return "raise the server's max_connections, or lower USER_SERVICE_POOL_MAX"
        case asyncpg.InterfaceError():
            return f"correct {variable}; sslmode=verify-full needs the authority's certificate, sslrootcert=FILE"
        case TimeoutError():
            return f"start it again, or find out why it hangs; else correct the host in {variable}"
        case _:
            return f"start it, or correct host and port in {variable}"


async def _schema(url: str) -> Finding:
    advice = "run `user-service migrate` as the schema's owner (DATABASE_OWNER_URL)"
    try:
        found = await status(url)
    except MigrationRefused as error:
        return _finding("schema", error, advice)
    except asyncpg.PostgresError as error:
        return Finding("schema", False, f"schema_migrations cannot be read ({type(error).__name__})", advice)
    waiting = [migration.name for migration in found if migration.applied_at is None]
    if waiting:
        return Finding("schema", False, f"too old, not applied yet: {', '.join(waiting)}", advice)
    return Finding("schema", True, f"at {found[-1].name}")


_HELD_BACK = f"""
SELECT count(*) FROM dead_letters
WHERE announced_at IS NULL AND state <> 'held' AND created_at < now() - interval '{LATE_S:.0f} s'"""
_RIGHTS = """
SELECT current_user AS role,
       has_table_privilege('users', 'UPDATE') AND has_table_privilege('events', 'INSERT') AS enough,
       has_table_privilege('events', 'UPDATE') OR has_table_privilege('audit_logs', 'DELETE')
           OR pg_has_role(relowner, 'MEMBER') AS too_much
FROM pg_class WHERE oid = 'events'::regclass"""


async def _rights(connection: asyncpg.Connection) -> Finding:
    """The service's own role must not be able to undo what protects history."""
    [found] = await connection.fetch(_RIGHTS)
    role = str(found["role"])
    if found["too_much"]:
        advice = "name the application's role in DATABASE_URL, and the owner only in DATABASE_OWNER_URL"
        return Finding("role", False, f"{role} may change what must never change (events, audit_logs)", advice)
    if not found["enough"]:
        advice = "grant what the migrations grant: they do it for the role that DATABASE_URL names when they run"
        return Finding("role", False, f"{role} may not write users and events", advice)
    return Finding("role", True, f"{role} may do what it needs and no more")


async def streams_compared(connection: asyncpg.Connection) -> list[Finding]:
    """What the group `jobs` found when it compared streams and tables last."""
    watched = [Watched(**row) for row in await connection.fetch(WATCHED)]
    if not watched:
        return [Finding("streams", True, "not compared with the tables yet; the group `jobs` does so")]
    return [_compared(stream) for stream in watched]


def _compared(stream: Watched) -> Finding:
    says = f"compared with its table {stream.looked_s_ago:.0f} s ago"
    if stream.lost_at is not None:
        when = f"{stream.lost_at:%Y-%m-%d %H:%M} UTC"
        says = f"{says}; found {stream.lost_what} at {when}, {stream.put_back} messages put back"
    advice = "it is being filled up: keep the groups `jobs` and `relay` running, and ask again"
    return Finding(f"stream {stream.stream}", not stream.is_refilling, says, advice)


async def _waiting(connection: asyncpg.Connection) -> list[Finding]:
    """What has waited too long for the groups `relay` and `jobs`."""
    [(events, age_s)] = await connection.fetch(OUTBOX)
    letters = await connection.fetchval(_HELD_BACK)
    return [
        Finding(
            "relay", age_s < LATE_S,
            f"{events} events wait to be announced, the oldest for {age_s:.0f} s" if events else "nothing waits for it",
            "start `user-service run relay`; if it runs, its log says why an event waits",
        ),
        Finding(
            "letters", not letters,
            f"{letters} wait to be announced for more than {LATE_S:.0f} s" if letters else "all are announced",
            "is USER_DEAD_LETTERS full? raise USER_SERVICE_LETTERS_BYTES_MAX; else start a group of events",
        ),
    ]  # fmt: skip


async def _owner(settings: Settings) -> Findings:
    if settings.database_owner_url is None:
        return
    connection = await _connect("schema owner", settings.database_owner_url.get_secret_value(), "DATABASE_OWNER_URL")
    if isinstance(connection, Finding):
        yield connection
        return
    try:
        may = await connection.fetchval("SELECT has_schema_privilege('public', 'CREATE')")
        role = await connection.fetchval("SELECT current_user")
        says = f"{role} {'may' if may else 'may not'} change the schema"
        yield Finding("schema owner", may, says, "name the schema's owner in DATABASE_OWNER_URL")
    finally:
        await connection.close(timeout=WAIT_S)


async def _bus(settings: Settings, nats_url: str) -> Findings:
    try:
        async with bus_client(nats_url) as client:
            server = str(client.connected_server_version).strip("<>").removeprefix("nats server v")
            yield Finding("nats", True, f"{where(nats_url)}, version {server}, max_payload {client.max_payload}")
            for finding in await _streams(client, settings):
                yield finding
            yield await _requests(client)
    except BusFailure as error:
        yield _finding("nats", error, "start it, or correct NATS_URL (host, port, TLS)")


async def _streams(client: Client, settings: Settings) -> list[Finding]:
    advice = "start `user-service run`: it makes and mends streams and consumers; see who changes them by hand"
    try:
        async with asyncio.timeout(WAIT_S):
            found = await differences(client.jetstream(), settings, TAKING_GROUPS)
    except (NatsError, TimeoutError) as error:
        advice = "enable JetStream in the server, and use a user who may ask for it: NATS_URL names the worker"
        return [Finding("jetstream", False, _said(error), advice)]
    good = Finding("jetstream", True, "streams and consumers are as this release wants them")
    faults = [Finding(item.what, False, f"is {item.found}, not {item.wanted}", advice) for item in found]
    full = await _nearly_full(client.jetstream(), settings)
    return [*(faults or [good]), *full, await _groups(client.jetstream())]


async def _nearly_full(js: JetStreamContext, settings: Settings) -> list[Finding]:
    """Streams that will take no more before long: what is to be announced waits then."""
    found: list[Finding] = []
    async with asyncio.timeout(WAIT_S):
        for config in stream_configs(settings):
            with suppress(NotFoundError):
                info = await js.stream_info(str(config.name))
                share = info.state.bytes / (info.config.max_bytes or -1)
                if share > FULL_MAX:
                    says = f"{share:.0%} of {info.config.max_bytes} bytes are taken"
                    advice = "raise its bytes (docs/settings.md, docs/runbook.md#streamnearlyfull)"
                    found.append(Finding(f"stream {config.name} fills", False, says, advice))
    return found


async def _groups(js: JetStreamContext) -> Finding:
    """Does anybody take what waits for each group? Where nothing waits, none need run yet."""
    silent: set[str] = set()
    waiting = 0
    async with asyncio.timeout(WAIT_S):
        for durable in durables(TAKING_GROUPS):
            try:
                info = await js.consumer_info(durable.stream, durable.name)
            except NotFoundError:
                silent.add(durable.group)
                continue
            if not info.num_waiting and not info.num_ack_pending:
                silent.add(durable.group)
                waiting += info.num_pending or 0
    if not silent:
        return Finding("groups", True, f"{', '.join(TAKING_GROUPS)} take what comes")
    names = [group for group in TAKING_GROUPS if group in silent]
    says = f"nobody takes what comes for {', '.join(names)}; {waiting} messages wait"
    return Finding("groups", not waiting, says, f"start `user-service run {' '.join(names)}`, or find out why it ends")


async def _requests(client: Client) -> Finding:
    """Does anybody answer? The service's own user may not ask, but hears the beat of every process that answers; an
    operator may ask. That nobody does is no fault by itself: the service need not run yet."""
    heard = asyncio.Event()

    async def hear(message: Msg) -> None:
        if "Status" not in (message.headers or {}):  # with which the server says that nobody listens
            heard.set()

    inbox = client.new_inbox()
    for subject in (f"{BEATS}.>", inbox):
        await client.subscribe(subject, cb=hear)
    await client.publish(f"$SRV.PING.{SERVICE_NAME}", reply=inbox)
    try:
        async with asyncio.timeout(3 * BEAT_S):
            await heard.wait()
    except TimeoutError:
        return Finding("requests", True, "nobody answers them; start `user-service run requests`")
    return Finding("requests", True, "answered")


async def _redis(settings: Settings) -> Findings:
    if settings.redis is None:
        yield Finding("redis", True, "not configured: the service runs without")
        return
    client = Redis(settings.redis)
    try:
        await client.ping()
    except RedisAway as error:
        kind = type(error.__cause__).__name__
        is_refused = kind in {"AuthenticationError", "NoPermissionError", "ResponseError"}
        do = "correct user, password and database in REDIS_URL" if is_refused else "start it or correct REDIS_URL"
        yield Finding("redis", False, f"{where(settings.redis)}: {kind}", f"{do}; until then limits are per process")
    else:
        yield Finding("redis", True, where(settings.redis))
    finally:
        await client.close()


async def _smtp(settings: Settings) -> Findings:
    url = settings.smtp_url.get_secret_value()
    mailer = Mailer(
        url, sender=settings.mail_from, allow_plaintext=settings.allow_plaintext,
        connect_timeout_s=WAIT_S, command_timeout_s=WAIT_S,
    )  # fmt: skip
    try:
        await mailer.probe()
    except MailUnavailable as error:
        is_refused = str(error).startswith("5")
        do = "correct user and password in SMTP_URL" if is_refused else "start it or correct SMTP_URL"
        yield Finding("smtp", False, f"{where(url)}: {error}", f"{do}; mail waits meanwhile")
    else:
        yield Finding("smtp", True, where(url))
    finally:
        await mailer.close()


async def _http(settings: Settings) -> Findings:
    """The port is free, or it is this service that listens there already."""
    host, port = settings.http_host, settings.http_port
    if port == 0:
        yield Finding("http", True, "a free port at each start")
        return
    fault = await _cannot_listen(host, port)
    if fault is None:
        yield Finding("http", True, f"{host}:{port} is free")
    elif fault.errno == errno.EADDRINUSE and await _is_ours(host, port):
        yield Finding("http", True, f"{host}:{port}, where the service listens")
    elif fault.errno == errno.EADDRINUSE:
        yield Finding("http", False, f"{host}:{port} is taken by another program", "set HTTP_PORT to a free port")
    else:
        says = f"cannot listen on {host}:{port} ({fault.strerror})"
        yield Finding(
            "http", False, says, "set USER_SERVICE_HTTP_HOST to an address of this machine, HTTP_PORT above 1023"
        )


async def _cannot_listen(host: str, port: int) -> OSError | None:
    loop = asyncio.get_running_loop()
    try:
        for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return error
    return None


async def _is_ours(host: str, port: int) -> bool:
    """Only our health page has `uptime` beside `checks`."""
    connectable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection(connectable, port)
            writer.write(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            said = b""
            while len(said) < _PAGE_BYTES_MAX and (more := await reader.read(_PAGE_BYTES_MAX)):
                said += more
            writer.close()
    except OSError:
        return False
    return b'"uptime"' in said and b'"checks"' in said
