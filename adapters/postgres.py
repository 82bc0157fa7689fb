"""The connection pool: every wait has a deadline, and driver errors become the few that callers can act on."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from adapters.breaker import Breaker
from adapters.server_urls import asked
from adapters.settings import Settings
from adapters.tracing import statement_listener
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

Connection = PoolConnectionProxy

_GONE = (
    OSError,  # includes TimeoutError, which asyncpg raises for a statement that outlived its client's patience
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what its protocol says of a connection that the server ends in the middle
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.DiskFullError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
)
FAILURES_MAX = 5
PAUSE_S = 1.0
"""After so many failures in a row the server is left alone for so long; then one caller asks, others are refused."""
RELEASE_S = 0.75
"""How long a server may take to end a statement that was given up, before its connection is replaced: what is
cancelled at a stop has time left to answer its caller, or to hand back its message."""
CLOSE_S = 0.5
SILENT_S = 1.0
_RACED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)


class Database:
    """A pool of connections as the application's role."""

    def __init__(self, pool: asyncpg.Pool, *, wait_s: float) -> None:
        self._pool = pool
        self._wait_s = wait_s
        self.breaker = Breaker(failures_max=FAILURES_MAX, pause_s=PAUSE_S)
        self._answered_at = time.monotonic()

    @classmethod
    async def connect(cls, settings: Settings, *, name: str = "user-service") -> "Database":
        """Open the pool; raises `Unavailable` when the server does not answer."""
        url, statement_ms = settings.database_url.get_secret_value(), settings.statement_ms_max
        with asked("PostgreSQL", url), translated_errors():
            pool = await asyncpg.create_pool(
                url,
                min_size=min(settings.pool_min, settings.pool_max),
                max_size=settings.pool_max,
                timeout=5,
                command_timeout=statement_ms / 1000 + 1,
                max_inactive_connection_lifetime=30,
                init=_prepare,
                reset=_leave_as_it_is,
                server_settings={
                    "application_name": name,
                    "statement_timeout": str(statement_ms),
                    "lock_timeout": str(statement_ms),
                    "idle_in_transaction_session_timeout": "10000",
                    "transaction_timeout": "30000",
                    "timezone": "UTC",
                },
            )
        return cls(pool, wait_s=settings.pool_wait_ms / 1000)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for single statements, held as briefly as the block lasts.

        Raises `Unavailable` at once while the server is left alone, because it has not answered before.
        """
        if not self.breaker.admits():
            raise Unavailable
        async with self._judged() as connection:
            yield connection

    @asynccontextmanager
    async def _judged(self) -> AsyncIterator[Connection]:
        """A connection, and what the block with it tells of the server."""
        began_at: float | None = None
        try:
            async with self._acquired() as connection:
                began_at = time.monotonic()
                yield connection
        except Unavailable:
            self._failed()
            raise
        except asyncio.CancelledError:
            if began_at is not None and self._is_silent_since(began_at):
                self._failed()
            raise
        except Overloaded:
            raise  # waited for one of our connections, or for a lock: it tells nothing
        except BaseException:
            self._answered()
            raise
        self._answered()

    def _is_silent_since(self, began_at: float) -> bool:
        """Callers may have deadlines as short as they like: one who gave up tells of the server only after it has had
        a while, and has answered nobody else in it."""
        return time.monotonic() - began_at >= SILENT_S and self._answered_at < began_at

    def _failed(self) -> None:
        if self.breaker.failed():
            log.warning("postgres is left alone for a while", pauseS=PAUSE_S)

    def _answered(self) -> None:
        self._answered_at = time.monotonic()
        if self.breaker.succeeded():
            log.info("postgres answers again")

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        with translated_errors():
            try:
                connection = await self._pool.acquire(timeout=self._wait_s)
            except TimeoutError as error:
                raise Overloaded() from error
            try:
                yield connection
            finally:
                await self._give_back(connection)

    async def _give_back(self, connection: Connection) -> None:
        """What was done is done: a connection that is lost on its way back is replaced, and fails nobody."""
        try:
            await self._pool.release(connection, timeout=RELEASE_S)
        except _GONE as error:
            log.warning("a connection was lost", error=type(error).__name__)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction that commits when the block ends well."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def probe(self) -> None:
        """Ask now, left alone or not."""
        async with self._judged() as connection:
            await connection.fetchval("SELECT 1", timeout=1)

    @property
    def in_use(self) -> int:
        return self._pool.get_size() - self._pool.get_idle_size()

    @property
    def connections_max(self) -> int:
        return self._pool.get_max_size()

    async def close(self) -> None:
        """Give all connections back; those of a server that hangs are cut."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


class translated_errors:  # noqa: N801 - reads as a statement where it is used
    """Driver errors inside the block leave it as `Unavailable`, `Overloaded` or `Stale`, cause attached."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        match error:
            case asyncpg.QueryCanceledError() | asyncpg.LockNotAvailableError():
                raise Overloaded() from error
            case _ if isinstance(error, _RACED):
                raise Stale() from error
            case _ if isinstance(error, _GONE):
                log.warning("postgres is not available", error=type(error).__name__)
                raise Unavailable() from error
            case _:
                return


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=_dumps, decoder=json.loads, schema="pg_catalog")
    if listener := statement_listener():
        connection.add_query_logger(listener)


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Nothing of ours outlives its transaction (no `SET`, `LISTEN`, cursor or session lock), so giving a connection
    back needs no round trip; a transaction that was left open the library ends by itself."""


async def execute_each(connection: Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """Run a statement for each row: asyncpg's `executemany`, which of no rows leaves a transaction open behind it."""
    if rows:
        await connection.executemany(statement, rows)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def role_of(url: str) -> str:
    """The user name in a PostgreSQL URL."""
    found = re.match(r"^\w+://([^:@/]+)", url)
    return found[1] if found else "user_service"
