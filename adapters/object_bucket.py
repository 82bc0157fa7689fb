"""A bucket of the object store, message by message, as every client of JetStream's object store reads and writes it.

The library's own `ObjectStore` waits without an end for chunks that do not come, believes what a client wrote into an
object's description, and deletes by purging, which leaves the bytes in the server's files.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from domain.refusals import Unavailable

log = structlog.get_logger()

CHUNK_BYTES_MAX = 128 * 1024
ANSWER_S = 2.0
"""How long one answer of the store may take."""
_STREAM_NOT_FOUND = 10059
_NO_SUCH_MESSAGE = frozenset({10037, 10043, 10057})
_DELETES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as it lies in the bucket."""

    seq: int
    data: bytes


@asynccontextmanager
async def _asking(client: Client) -> AsyncIterator[None]:
    """Whatever goes wrong inside is `Unavailable`; what is sent while the link is down would be sent later."""
    if not client.is_connected:
        raise Unavailable
    try:
        async with asyncio.timeout(ANSWER_S):
            yield
    except (NatsError, OSError, TimeoutError) as error:
        log.warning("the object store does not answer", error=type(error).__name__, says=str(error)[:200])
        raise Unavailable from error


class Bucket:
    """One bucket on one connection. Each call is one answer of the store, and raises `Unavailable` without it."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._js = client.jetstream(timeout=ANSWER_S)
        self.name = name
        self.stream = f"OBJ_{name}"

    def chunks(self, nuid: str) -> str:
        """The subject of an object's bytes."""
        return f"$O.{self.name}.C.{nuid}"

    def description(self, object_name: str) -> str:
        """The subject of what an object is called and how large it is."""
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(object_name.encode()).decode()}"

    async def put_chunk(self, nuid: str, content: bytes) -> None:
        await self._publish(self.chunks(nuid), content, None)

    async def describe(self, object_name: str, nuid: str, content: bytes) -> None:
        """Give an object of one chunk its name; the name's earlier description is gone with it."""
        digest = base64.urlsafe_b64encode(sha256(content).digest()).decode()
        said = {
            "name": object_name, "bucket": self.name, "nuid": nuid, "size": len(content), "chunks": 1,
            "digest": f"SHA-256={digest}", "options": {"max_chunk_size": CHUNK_BYTES_MAX},
            "mtime": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        await self._publish(self.description(object_name), json.dumps(said).encode(), {"Nats-Rollup": "sub"})

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str] | None) -> None:
        async with _asking(self._client):
            await self._js.publish(subject, body, timeout=ANSWER_S, stream=self.stream, headers=headers)

    async def last(self, subject: str) -> Stored | None:
        """The newest message of a subject, asked of the stream's leader."""
        return await self._get(subject, None, direct=False)

    async def following(self, subject: str, seq: int, *, direct: bool = False) -> Stored | None:
        """The first message of a subject from this sequence on; `direct` may be answered by a copy that lags."""
        return await self._get(subject, seq, direct=direct)

    async def _get(self, subject: str, seq: int | None, *, direct: bool) -> Stored | None:
        async with _asking(self._client):
            try:
                found = await self._js.get_msg(self.stream, seq, subject, direct=direct, next=seq is not None)
            except NotFoundError as error:
                if error.err_code == _STREAM_NOT_FOUND:
                    raise
                return None
        return Stored(found.seq or 0, found.data or b"")

    async def subjects(self, pattern: str) -> list[str]:
        """Every subject that has messages and matches; ask for few."""
        async with _asking(self._client):
            info = await self._js.stream_info(self.stream, subjects_filter=pattern)
        return sorted(info.state.subjects or {})

    async def delete(self, seqs: Sequence[int]) -> None:
        """Delete messages and overwrite their bytes; those that are gone already are no matter."""
        permits = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def delete_one(seq: int) -> None:
            async with permits, _asking(self._client):
                try:
                    await self._js.delete_msg(self.stream, seq)
                except APIError as error:
                    if error.err_code not in _NO_SUCH_MESSAGE:
                        raise

        await asyncio.gather(*(delete_one(seq) for seq in seqs))
