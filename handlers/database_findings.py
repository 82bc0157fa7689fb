"""PostgreSQL as a doctor sees it: reached, current, with the right roles, and with nothing that has waited too long."""

from datetime import UTC, datetime

import asyncpg

from adapters.backlog import OUTBOX
from adapters.migrations import MigrationRefused, status
from adapters.server_urls import where
from adapters.settings import Settings
from adapters.stream_marks import WATCHED, Watched
from handlers.findings import WAIT_S, Finding, Findings, finding_of, said_of

CLOCK_S_MAX = 1.0
LATE_S = 30.0
"""So long an event, or a letter, may wait to be announced."""

_REFUSED = (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)


async def database_findings(settings: Settings) -> Findings:
    """As the application sees it."""
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
        return Finding(what, False, f"{where(url)}: {said_of(error)}", _connection_advice(error, variable))


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
        return finding_of("schema", error, advice)
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


async def owner_findings(settings: Settings) -> Findings:
    """As the schema's owner sees it, where one is named."""
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
