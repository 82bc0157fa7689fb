"""The bucket `user-avatar-uploads`: pictures that a gateway has put there for a user, read once and then destroyed.

Whoever may put decides every byte, of an object's description too. So nothing in it is believed: the bytes are counted
as they are read, and only a subject that can name nothing else is read.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import structlog
from nats.aio.client import Client
from pydantic import BaseModel, ValidationError

from adapters.object_bucket import Bucket
from contracts.avatar import UPLOADS_BUCKET
from domain.refusals import PayloadTooLarge, Unavailable

log = structlog.get_logger()

UPLOAD_BYTES_MAX = 5 * 1024 * 1024
CHUNKS_MAX = 640
_NUID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class NoSuchUpload(Exception):
    """There is no object of this name, or not all of it."""


class _Description(BaseModel):
    """As much of an object's description as is looked at."""

    nuid: str
    size: int
    digest: str
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """What was put, and the messages that it lies in."""

    content: bytes = field(repr=False)
    seqs: tuple[int, ...]


class AvatarUploads:
    """Uploads on one connection; every method raises `Unavailable` when the object store does not answer."""

    def __init__(self, client: Client) -> None:
        self._bucket = Bucket(client, UPLOADS_BUCKET)

    async def read(self, object_name: str) -> Upload:
        """All of an object. Raises `NoSuchUpload`, or `PayloadTooLarge` as soon as it is."""
        described = await self._bucket.last(self._bucket.description(object_name))
        description = _description(described.data) if described else None
        if described is None or description is None:
            raise NoSuchUpload
        subject = self._bucket.chunks(description.nuid)
        content, seqs, next_seq = bytearray(), [described.seq], 1
        while len(content) < description.size:
            chunk = await self._bucket.following(subject, next_seq)
            if chunk is None or not chunk.data:
                raise NoSuchUpload
            content += chunk.data
            seqs.append(chunk.seq)
            next_seq = chunk.seq + 1
            if len(content) > UPLOAD_BYTES_MAX or len(seqs) > CHUNKS_MAX:
                await self.destroy(seqs)
                raise PayloadTooLarge
        digest = base64.urlsafe_b64encode(sha256(content).digest()).decode()
        if description.digest.partition("=")[2].rstrip("=") != digest.rstrip("="):
            raise NoSuchUpload
        return Upload(bytes(content), tuple(seqs))

    async def destroy(self, seqs: Sequence[int]) -> None:
        """Delete what was read and overwrite its bytes; where that fails its hour ends it."""
        try:
            await self._bucket.delete(seqs)
        except Unavailable:
            log.warning("an upload is left to its end")


def _description(data: bytes) -> _Description | None:
    try:
        said = _Description.model_validate_json(data)
    except ValidationError:
        return None
    return None if said.deleted or not _NUID.fullmatch(said.nuid) else said
