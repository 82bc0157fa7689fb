"""Personal data at rest: encrypted under a key per user; destroying the key erases it, and history stays whole."""

import json
import os
from uuid import UUID

from adapters.bounded import BoundedDict
from adapters.keys import Keys, decrypt, encrypt
from adapters.postgres import Connection

NOBODY = UUID(int=0)
"""Whose key guards audit rows that belong to no account."""

_CACHED_MAX = 10_000


class PersonalData:
    """Seals and opens under the keys of `user_keys`; opened keys are remembered, bounded."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._opened: BoundedDict[str, bytes] = BoundedDict(_CACHED_MAX)

    async def make_key(self, connection: Connection, user_id: UUID) -> str:
        """Store a fresh key for a user, in the transaction that makes the user; returns it wrapped."""
        wrapped = self._keys.seal("personal", os.urandom(32), place=_place(user_id))
        await connection.execute("INSERT INTO user_keys (user_id, wrapped) VALUES ($1, $2)", user_id, wrapped)
        return wrapped

    async def key_of(self, connection: Connection, user_id: UUID | None) -> str | None:
        """The wrapped key of a user, or None once erased; that of `NOBODY` is made when first needed."""
        owner = user_id or NOBODY
        wrapped = await connection.fetchval("SELECT wrapped FROM user_keys WHERE user_id = $1", owner)
        if wrapped is None and user_id is None:
            fresh = self._keys.seal("personal", os.urandom(32), place=_place(NOBODY))
            await connection.execute(
                "INSERT INTO user_keys (user_id, wrapped) VALUES ($1, $2) ON CONFLICT DO NOTHING", NOBODY, fresh
            )
            wrapped = await connection.fetchval("SELECT wrapped FROM user_keys WHERE user_id = $1", NOBODY)
        return None if wrapped is None else str(wrapped)

    def seal(self, wrapped: str, user_id: UUID | None, value: object, *, place: str) -> str:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
        owner = user_id or NOBODY
        return f"v1.user.{encrypt(self._open(wrapped, owner), text.encode(), f'{place}:{owner}')}"

    def open(self, wrapped: str | None, user_id: UUID | None, sealed: str | None, *, place: str) -> object:
        """The value, or None where there was none or its key is destroyed."""
        if wrapped is None or sealed is None:
            return None
        owner = user_id or NOBODY
        plain = decrypt(self._open(wrapped, owner), sealed.rpartition(".")[2], f"{place}:{owner}")
        return json.loads(plain)

    def _open(self, wrapped: str, user_id: UUID) -> bytes:
        key = self._opened.get(wrapped)
        if key is None:
            key = self._keys.open("personal", wrapped, place=_place(user_id))
            self._opened[wrapped] = key
        return key


def _place(user_id: UUID) -> str:
    return f"user_keys.wrapped:{user_id}"
