"""The bucket `user-avatars`: squares of WebP under a content hash, each upload's objects apart from all others.

Two uploads of one picture have the same object names. So the bytes lie under the upload's own id, which is what this
service reads and removes by; the names, which others read by, follow what is shown.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from uuid import UUID

from nats.aio.client import Client

from adapters.object_bucket import Bucket
from contracts.avatar import AVATARS_BUCKET
from domain.avatar import Avatar


def hashes_of(squares: Mapping[int, bytes]) -> dict[int, str]:
    """The content hash of each square."""
    return {size: sha256(content).hexdigest() for size, content in squares.items()}


class AvatarStore:
    """Avatars on one connection; every method raises `Unavailable` when the object store does not answer."""

    def __init__(self, client: Client) -> None:
        self._bucket = Bucket(client, AVATARS_BUCKET)

    async def put(self, user_id: UUID, avatar: Avatar, squares: Mapping[int, bytes]) -> None:
        """Store an avatar's squares under the names that it gives them."""
        for size, content in squares.items():
            name = avatar.sizes[str(size)]
            nuid = _nuid(user_id, avatar.id, name)
            await self._bucket.put_chunk(nuid, content)
            await self._bucket.describe(name, nuid, content)

    async def get(self, user_id: UUID, avatar_id: UUID, name: str) -> bytes | None:
        """What lies under one of an avatar's names; None where it is gone or is not what was stored."""
        subject = self._bucket.chunks(_nuid(user_id, avatar_id, name))
        found = await self._bucket.following(subject, 1, direct=True)
        if found is None:  # a copy that lags behind its leader answers, too
            found = await self._bucket.following(subject, 1)
        if found is None or sha256(found.data).hexdigest() != _hash_in(name):
            return None
        return found.data

    async def remove(self, user_id: UUID, avatar_id: UUID, sizes: Mapping[str, str]) -> None:
        """Delete an avatar's objects, whatever is left of them; a name that another upload has taken stays."""
        for name in sizes.values():
            await self._remove_object(name, _nuid(user_id, avatar_id, name))

    async def _remove_object(self, name: str, nuid: str) -> None:
        """The name first: whoever dies in between leaves bytes, by which the rest is found again."""
        described = await self._bucket.last(self._bucket.description(name))
        if described is not None and _said_nuid(described.data) == nuid:
            await self._bucket.delete([described.seq])
        chunk = await self._bucket.last(self._bucket.chunks(nuid))
        if chunk is not None:
            await self._bucket.delete([chunk.seq])

    async def name_again(self, user_id: UUID, avatar: Avatar) -> None:
        """Let the names lead to this avatar, after another upload of the same picture was removed."""
        for name in avatar.sizes.values():
            nuid = _nuid(user_id, avatar.id, name)
            chunk = await self._bucket.following(self._bucket.chunks(nuid), 1)
            if chunk is not None and await self._bucket.last(self._bucket.description(name)) is None:
                await self._bucket.describe(name, nuid, chunk.data)

    async def remove_all(self, user_id: UUID) -> None:
        """Delete every object of a user, and overwrite its bytes, without asking the database."""
        of_user = self._bucket.chunks(f"{user_id}.>")
        for subject in await self._bucket.subjects(of_user):
            nuid = subject.removeprefix(self._bucket.chunks(""))
            await self._remove_object(f"{user_id}/{nuid.rpartition('.')[2]}", nuid)


async def remove_all(client: Client, user_id: UUID) -> None:
    """Delete every avatar object of a user who is being erased; raises `Unavailable`, and may be repeated."""
    await AvatarStore(client).remove_all(user_id)


def _nuid(user_id: UUID, avatar_id: UUID, name: str) -> str:
    """Where the bytes lie: all of a user's are found by the subject's first part."""
    return f"{user_id}.{avatar_id}.{name.rpartition('/')[2]}"


def _hash_in(name: str) -> str:
    return name.rpartition("/")[2].partition("-")[0]


def _said_nuid(description: bytes) -> str | None:
    try:
        said = json.loads(description)
    except ValueError:
        return None
    return said.get("nuid") if isinstance(said, dict) else None
