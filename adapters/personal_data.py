"""Personal data at rest: encrypted under a key per user; destroying the key erases it, and history stays whole."""

import json
import os
from collections.abc import Set
from uuid import UUID

from adapters.bounded import BoundedDict
from adapters.keys import CannotOpen, Keys, decrypt, encrypt, mac
from adapters.postgres import Connection, execute_each

NOBODY = UUID(int=0)
"""Whose key guards audit rows that belong to no account."""

_CACHED_MAX = 10_000


class PersonalData:
    """Seals and opens under the keys of `user_keys`; opened keys are remembered, bounded."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._opened: BoundedDict[str, bytes] = BoundedDict(_CACHED_MAX)

    def new_key(self, user_id: UUID) -> str:
        """A fresh key for a user, wrapped: to be stored with the user."""
        return self._keys.seal("personal", os.urandom(32), place=_place(user_id))

    async def keys_of(self, connection: Connection, user_ids: Set[UUID | None]) -> dict[UUID | None, str]:
        """The wrapped keys of users, without those that are erased; that of `NOBODY` is made when first needed."""
        owners = [user_id or NOBODY for user_id in user_ids]
        rows = await connection.fetch("SELECT user_id, wrapped FROM user_keys WHERE user_id = ANY($1)", owners)
        found: dict[UUID, str] = {row["user_id"]: row["wrapped"] for row in rows}
        if None in user_ids and NOBODY not in found:
            found[NOBODY] = await self._key_of_nobody(connection)
        return {user_id: found[user_id or NOBODY] for user_id in user_ids if (user_id or NOBODY) in found}

    async def _key_of_nobody(self, connection: Connection) -> str:
        await connection.execute(
            "INSERT INTO user_keys (user_id, wrapped) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            NOBODY, self.new_key(NOBODY),
        )  # fmt: skip
        return str(await connection.fetchval("SELECT wrapped FROM user_keys WHERE user_id = $1", NOBODY))

    async def rewrap(self, connection: Connection, rows_max: int) -> int:
        """Wrap keys of users under the server key that is in force now; how many were under another.

        One that does not open stays as it is: it may open again once its server key is back.
        """
        kid = self._keys.ring("personal").in_force
        rows = await connection.fetch(
            "SELECT user_id, wrapped FROM user_keys WHERE wrapped NOT LIKE $1 LIMIT $2", f"v1.{kid}.%", rows_max
        )
        tried = [(row["user_id"], row["wrapped"], self._wrapped_anew(row["user_id"], row["wrapped"])) for row in rows]
        fresh = [row for row in tried if row[2]]
        await execute_each(connection, "UPDATE user_keys SET wrapped = $3 WHERE user_id = $1 AND wrapped = $2", fresh)
        return len(fresh)

    def _wrapped_anew(self, user_id: UUID, wrapped: str) -> str | None:
        place = _place(user_id)
        try:
            return self._keys.seal("personal", self._keys.open("personal", wrapped, place=place), place=place)
        except CannotOpen:
            return None

    def pseudonym(self, text: str) -> str:
        """A name for a personal text where it must not stand itself; another one once the ring's key is replaced."""
        return mac(self._keys.ring("personal").key, b"pseudonym", text.encode()).hex()[:32]

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
