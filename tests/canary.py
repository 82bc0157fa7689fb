"""What must be found nowhere when a run is over: every secret that tests sent, were given or were mailed, and those
that the servers were started with; and where each may stand all the same."""

import asyncio
import base64
import json
import mmap
import quopri
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import asyncpg
import nats
from ahocorasick_rs import BytesAhoCorasick
from redis.asyncio import Redis

_SECRET_FIELDS = {
    "password", "currentPassword", "newPassword", "accessToken", "refreshToken", "deviceToken", "challengeToken",
    "secret", "backupCodes",
}  # fmt: skip
_LENGTH_MIN = 10
"""Of what is sent, a shorter one may stand anywhere by chance or because a test put it there."""
_PUBLISHED = {"Analytical-Engine-1843"}
"""The password of the README's first request; `dev` shows it too."""
_TOKEN = re.compile(rb"[?&]token=([\w-]+)")
_MAY_HOLD = {
    "mailed": re.compile(r"\.eml$"),
    "server": re.compile(r"/(credentials\.json|ready\.json|[a-z_]+\.conf)$"),
    "key": re.compile(r"/keys\.json$"),
}
"""By kind of secret, the files that hold it for a living; what was `told` to a caller stands nowhere."""

_told: dict[str, str] = {}


def overhear(body: bytes, reply: Mapping[str, Any]) -> None:
    """Remember the secrets of one request that was answered with success, and of its reply."""
    if reply["success"]:
        _told.update({secret: f"told as {name}" for name, secret in _secrets_in(json.loads(body or b"{}"))})
        _told.update({secret: f"told as {name}" for name, secret in _secrets_in(reply["data"])})


def _secrets_in(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for inner in value:
            yield from _secrets_in(inner)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name not in _SECRET_FIELDS:
            yield from _secrets_in(inner)
            continue
        for secret in inner if isinstance(inner, list) else [inner]:
            if isinstance(secret, str) and len(secret) >= _LENGTH_MIN and secret not in _PUBLISHED:
                # Of a signed token the signature alone is the secret: the rest is claims.
                yield name, secret.rpartition(".")[2] if "oken" in name else secret


class Search:
    """All secrets known so far, looked for at once: as they are, in hex, in base 64, and without dashes.

    What was mailed and what the servers were started with is read below `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        forms = {form: name for secret, name in _told.items() for form in _forms(secret.encode())}
        forms |= {form: "mailed" for secret in _mailed(folder) for form in _forms(secret.encode())}
        forms |= {
            form: f"server {name}" for name, secret in _server_secrets(folder) for form in _forms(secret.encode())
        }
        forms |= {form: f"key of {ring}" for ring, key in _keys(folder) for form in _forms(key)}
        self._names = list(forms.values())
        self._pattern = BytesAhoCorasick(list(forms))

    def found_in(self, place: str, content: bytes | mmap.mmap) -> set[tuple[str, str]]:
        """(place, secret's name) of what may not stand there."""
        found = {self._names[index] for index, _, _ in self._pattern.find_matches_as_indexes(content)}
        return {(place, name) for name in found if not _may_hold(name, place)}

    def found_in_files(self) -> set[tuple[str, str]]:
        """In whatever the servers and the service have written."""
        found = set()
        for path in self._folder.rglob("*"):
            if path.is_file() and path.stat().st_size:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    found |= self.found_in(str(path), content)
        return found

    async def found_in_service(self, ready: Mapping[str, Any]) -> set[tuple[str, str]]:
        """In what the running service tells about itself."""
        found = set()
        async with await nats.connect(ready["natsUrl"]) as nc:
            for verb in ("PING", "INFO", "STATS"):
                told = (await nc.request(f"$SRV.{verb}.user-service", timeout=5)).data
                found |= self.found_in(f"$SRV.{verb}", told)
        for page in ("/metrics", "/health"):
            found |= self.found_in(page, await asyncio.to_thread(_page, f"{ready['httpUrl']}{page}"))
        return found

    async def found_in_servers(self, database_url: str, redis_url: str | None) -> set[tuple[str, str]]:
        """In every table and every key."""
        found = set()
        connection = await asyncpg.connect(database_url)
        try:
            for (table,) in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
                rows = await connection.fetch(f'SELECT t::text FROM "{table}" t')
                found |= self.found_in(f"table {table}", "\n".join(text for (text,) in rows).encode())
        finally:
            await connection.close()
        return found | self.found_in("Valkey", await _valkey(redis_url) if redis_url else b"")


def _may_hold(name: str, place: str) -> bool:
    files = _MAY_HOLD.get(name.partition(" ")[0])
    return files is not None and files.search(place) is not None


def _forms(secret: bytes) -> Iterator[bytes]:
    yield secret
    yield secret.hex().encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(secret).rstrip(b"=")[:-1]
    if len(bare := secret.replace(b"-", b"")) >= _LENGTH_MIN:
        yield bare


def _mailed(folder: Path) -> Iterator[str]:
    """The token of every link, without parsing each of thousands of mails."""
    for path in folder.rglob("*.eml"):
        raw = path.read_bytes()
        assert b"base64" not in raw, f"{path} is to be read in another way"
        yield from (token.decode() for token in _TOKEN.findall(quopri.decodestring(raw)))


def _server_secrets(folder: Path) -> Iterator[tuple[str, str]]:
    """The passwords in the servers' addresses, and that of the first admin."""
    for path in folder.rglob("credentials.json"):
        yield from json.loads(path.read_text())["secrets"].items()


def _keys(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("keys.json"):
        for purpose, ring in json.loads(path.read_text()).items():
            for key in ring["keys"].values():
                yield purpose, base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))


def _page(url: str) -> bytes:
    with urlopen(url, timeout=5) as found:
        read: bytes = found.read()
    return read


async def _valkey(url: str) -> bytes:
    async with Redis.from_url(url) as connection:
        keys = [key async for key in connection.scan_iter(count=1000)]
        return b"\n".join([*keys, *[await connection.dump(key) or b"" for key in keys]])
