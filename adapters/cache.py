"""Two levels of cache that are correct first: L1 in the process, L2 in Redis, the database behind both.

An entry carries the version of its row. Dropping leaves a floor behind, the version that made the drop: a slow reader
that loaded an older row before cannot put it back. Who a caller is (`Standing`) is held in L1 alone.
"""

import time
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from adapters.bounded import BoundedDict
from adapters.redis import Redis, RedisAway
from adapters.users import Account
from contracts.users import Profile, User

Value = TypeVar("Value")

L1_SECONDS = 60.0
STANDING_SECONDS = 5.0
"""Where a cluster of NATS servers falls apart, each part hears itself and looks well: so long a session that ended on
the other side may still be let in."""
USER_SECONDS = 3600
PROFILE_SECONDS = 1800
_L1_MAX = 20_000
_FLOORS_MAX = 200_000
"""More than can change within the minute that an entry lives: no floor leaves before what it hides."""
_GENERATION = "cache:generation"

# Write entries unless a newer version (an entry, or the floor that a drop left) stands there already; one of an older
# generation cannot be read any more, so it gives way to its equal, but its version still counts as a floor. KEYS: the
# generation, then the entries. ARGV: the generation to write under ('' is the current one; any other writes nothing),
# then version, seconds and body for each; a floor has no body.
_WRITE = """
local generation = redis.call('GET', KEYS[1]) or '0'
if ARGV[1] ~= '' and ARGV[1] ~= generation then return {} end
for i = 2, #KEYS do
  local version, seconds, body = tonumber(ARGV[3 * i - 4]), ARGV[3 * i - 3], ARGV[3 * i - 2]
  local there = redis.call('GET', KEYS[i])
  local written, known, kept = nil, nil, nil
  if there then written, known, kept = string.match(there, '^(%d+):(%d+):(.*)$') end
  known = tonumber(known or '0')
  if version > known or (version == known and (written ~= generation or #kept == 0)) then
    redis.call('SET', KEYS[i], generation .. ':' .. version .. ':' .. body, 'EX', seconds)
  end
end
return {}
"""
_CURRENT = ""


class LocalCache(Generic[Value]):
    """L1: bounded, at most a minute old, and untrusted while the process may be missing invalidations."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, seconds: float = L1_SECONDS) -> None:
        self._clock = clock
        self._seconds = seconds
        self._entries: BoundedDict[object, tuple[float, UUID, int, Value]] = BoundedDict(_L1_MAX)
        self._floors: BoundedDict[UUID, int] = BoundedDict(_FLOORS_MAX)
        self.is_trusted = False
        self.epoch = 0
        """Rises when invalidations may have been missed: what was read before must not be put after."""
        self.hits = 0
        self.misses = 0

    def get(self, key: object) -> Value | None:
        """What was put under the key, while it is fresh and no newer version of its user is known of."""
        entry = self._entries.get(key) if self.is_trusted else None
        if entry is None or entry[0] < self._clock() or entry[2] < self.floor_of(entry[1]):
            self.misses += 1
            return None
        self.hits += 1
        return entry[3]

    def put(self, key: object, user_id: UUID, version: int, value: Value, *, epoch: int | None = None) -> None:
        """Keep a value that was read at this version of its user, unless a newer one is known of.

        `epoch` is that of the time before it was read: a gap since then may have hidden a newer version.
        """
        if epoch is not None and epoch != self.epoch:
            return
        there = self._entries.get(key)
        known = max(self.floor_of(user_id), 0 if there is None else there[2])
        if self.is_trusted and version >= known:
            self._entries[key] = (self._clock() + self._seconds, user_id, version, value)

    def drop(self, user_id: UUID, version: int) -> None:
        """Show nothing any more that was read of a user before this version."""
        self._floors[user_id] = max(version, self.floor_of(user_id))

    def floor_of(self, user_id: UUID) -> int:
        """The least version of a user that may still be shown."""
        return self._floors.get(user_id, 0)

    def clear(self) -> None:
        """Forget everything: invalidations may have been missed."""
        self.epoch += 1
        self._entries.clear()


class SharedCache:
    """L2: users and profiles as replies show them, in Redis. While Redis is away everything is a miss."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.hits = 0
        self.misses = 0

    async def get(self, user_id: UUID) -> tuple[Account | None, str]:
        """The account, if both parts stand there at one version, and the generation to put it back under."""
        try:
            generation, user, profile = await self._redis.get_many([_GENERATION, *_keys(user_id)])
        except RedisAway:
            self.misses += 1
            return None, ""
        current = (generation or b"0").decode()
        account = _account(current, user, profile)
        if account is None:
            self.misses += 1
        else:
            self.hits += 1
        return account, current

    async def put(self, account: Account, generation: str) -> None:
        if generation:
            bodies = account.user.model_dump_json(by_alias=True), account.profile.model_dump_json(by_alias=True)
            await self._write(generation, {account.user.id: (account.user.version, *bodies)})

    async def drop(self, versions: Mapping[UUID, int]) -> bool:
        """Leave these versions as floors; False while Redis is away."""
        return await self._write(_CURRENT, {user_id: (version, "", "") for user_id, version in versions.items()})

    async def _write(self, generation: str, entries: Mapping[UUID, tuple[int, str, str]]) -> bool:
        """Version, user and profile of each; False while Redis is away."""
        keys, args = [_GENERATION], list[str | int | float]([generation])
        for user_id, (version, user, profile) in entries.items():
            keys += _keys(user_id)
            args += [version, USER_SECONDS, user, version, PROFILE_SECONDS, profile]
        try:
            await self._redis.run(_WRITE, keys, args)
        except RedisAway:
            return False
        return True

    async def forget_all(self) -> bool:
        """Raise the generation: no entry written before can be read any more."""
        try:
            await self._redis.increment(_GENERATION)
        except RedisAway:
            return False
        return True


def _keys(user_id: UUID) -> list[str]:
    return [f"user:{user_id}", f"profile:{user_id}"]


def _account(generation: str, user: bytes | None, profile: bytes | None) -> Account | None:
    if user is None or profile is None:
        return None
    try:
        user_generation, user_version, user_body = user.split(b":", 2)
        profile_generation, profile_version, profile_body = profile.split(b":", 2)
        same = user_version == profile_version and {user_generation, profile_generation} == {generation.encode()}
        if not same or not user_body or not profile_body:
            return None
        return Account(User.model_validate_json(user_body), Profile.model_validate_json(profile_body))
    except ValueError:  # of another shape: a release before or after this one wrote it
        return None


class Source(Protocol):
    """The database, as the caches need it."""

    async def account(self, user_id: UUID) -> Account | None:
        """The account as it stands."""
        ...

    async def standing(self, user_id: UUID) -> tuple[str, str, int] | None:
        """Role, status and version alone: one read by primary key."""
        ...


class AccountCache:
    """Accounts through L1 and L2 to the database; straight from there while invalidations may be missed.

    Role, status and version are never taken from Redis: who can write there must not be able to make an admin.
    """

    def __init__(self, local: LocalCache[Account], shared: SharedCache, source: Source) -> None:
        self.local = local
        self.shared = shared
        self._source = source

    async def get(self, user_id: UUID) -> Account | None:
        """An account as replies show it; None for unknown and deleted ones."""
        if not self.local.is_trusted:
            return await self._source.account(user_id)
        account = self.local.get(user_id)
        if account is not None:
            return account
        epoch = self.local.epoch
        account, generation = await self.shared.get(user_id)
        if account is None or await self._source.standing(user_id) != _standing(account.user):
            account = await self._source.account(user_id)
            if account is not None:
                await self.shared.put(account, generation)
        if account is not None:
            self.local.put(user_id, user_id, account.user.version, account, epoch=epoch)
        return account


def _standing(user: User) -> tuple[str, str, int]:
    return user.role, user.status, user.version
