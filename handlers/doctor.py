"""`user-service doctor`: everything the service needs, asked one by one, each fault with what to do about it."""

import asyncio
import errno
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from adapters.breached_passwords import BadList, BreachedPasswords
from adapters.environment import advice_for, unknown_variables, variable_of
from adapters.keys import BadKeys, read_keys
from adapters.redis import Redis, RedisAway
from adapters.server_urls import where
from adapters.settings import Settings
from adapters.smtp import Mailer, MailUnavailable
from handlers.bus_findings import bus_findings
from handlers.database_findings import database_findings, owner_findings
from handlers.findings import WAIT_S, Finding, Findings, finding_of, said_of

_PAGE_BYTES_MAX = 64 * 1024
EXAMINATION_S = 8.0
"""How long one server is looked at; they are looked at side by side."""


async def examine(settings: Settings, faults: Mapping[str, Sequence[str]], nats_url: str) -> Findings:
    """Every finding, in the order in which things depend on each other; no server is asked at a faulty address."""
    for finding in _settings(faults):
        yield finding
    if "keys_file" not in faults:
        yield _keys(settings)
    if settings.breached_passwords_file is not None and "breached_passwords_file" not in faults:
        yield _breached_passwords(settings.breached_passwords_file)
    examinations = {
        "database_url": ("postgresql", database_findings(settings)),
        "database_owner_url": ("schema owner", owner_findings(settings)),
        "nats_url": ("nats", bus_findings(settings, nats_url)),
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
        found.append(Finding(what, False, said_of(error), f"find out why it does not answer, or correct {variable}"))
    return found


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
        return finding_of("keys", error, "restore the file from its backup: new keys end all sessions")
    return Finding("keys", True, str(path))


def _breached_passwords(path: Path) -> Finding:
    try:
        BreachedPasswords(path).close()
    except BadList as error:
        return finding_of("breached passwords", error, "")
    return Finding("breached passwords", True, str(path))


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
