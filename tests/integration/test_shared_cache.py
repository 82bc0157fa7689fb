"""L2 on a real server: a slow reader cannot put an older account back, and without the server all is a miss."""

from collections.abc import Callable
from uuid import UUID, uuid4

import redis.asyncio as raw_redis

from adapters.cache import AccountCache, LocalCache, SharedCache
from adapters.embedded import EmbeddedServers
from adapters.redis import Redis
from adapters.users import Account, profile_view, user_view
from tests.builders import NOW, a_user


def _account(user_id: UUID, version: int, first_name: str = "Ada") -> Account:
    user = a_user(id=user_id)
    user.version, user.first_name = version, first_name
    return Account(user_view(user), profile_view(user, NOW))


class Rows:
    """A database of one account, which can be told to be slow."""

    def __init__(self, account: Account) -> None:
        self.account_now = account
        self.reads = 0
        self.meanwhile: Callable[[], None] = lambda: None

    async def account(self, user_id: UUID) -> Account | None:
        self.reads += 1
        read = self.account_now
        self.meanwhile()
        return read if read.user.id == user_id else None

    async def standing(self, user_id: UUID) -> tuple[str, str, int] | None:
        user = self.account_now.user
        return (user.role, user.status, user.version) if user.id == user_id else None


async def test_what_was_put_comes_back_whole(redis: Redis) -> None:
    shared, account = SharedCache(redis), _account(uuid4(), 3)
    missing, generation = await shared.get(account.user.id)
    assert missing is None
    await shared.put(account, generation)
    assert (await shared.get(account.user.id))[0] == account
    assert (shared.hits, shared.misses) == (1, 1)


async def test_an_older_account_cannot_be_put_back(redis: Redis) -> None:
    shared, user_id = SharedCache(redis), uuid4()
    _, generation = await shared.get(user_id)
    await shared.put(_account(user_id, 5, "New"), generation)
    await shared.put(_account(user_id, 4, "Old"), generation)
    found, _ = await shared.get(user_id)
    assert found is not None
    assert (found.user.version, found.user.first_name) == (5, "New")


async def test_a_drop_leaves_a_floor(redis: Redis) -> None:
    shared, user_id = SharedCache(redis), uuid4()
    _, generation = await shared.get(user_id)
    await shared.put(_account(user_id, 4), generation)
    assert await shared.drop({user_id: 5})
    assert (await shared.get(user_id))[0] is None
    await shared.put(_account(user_id, 4), generation)
    assert (await shared.get(user_id))[0] is None
    await shared.put(_account(user_id, 5), generation)
    assert (await shared.get(user_id))[0] is not None
    assert await shared.drop({user_id: 4})  # heard late
    assert (await shared.get(user_id))[0] is not None


async def test_a_new_generation_hides_all_and_can_be_filled_again(redis: Redis) -> None:
    shared, account = SharedCache(redis), _account(uuid4(), 4)
    _, old = await shared.get(account.user.id)
    await shared.put(account, old)
    assert await shared.forget_all()
    found, new = await shared.get(account.user.id)
    assert found is None
    assert new != old
    await shared.put(account, old)  # by a reader that began before
    assert (await shared.get(account.user.id))[0] is None
    await shared.put(account, new)
    assert (await shared.get(account.user.id))[0] == account


async def test_a_floor_outlives_its_generation(redis: Redis) -> None:
    shared, user_id = SharedCache(redis), uuid4()
    await shared.drop({user_id: 5})
    await shared.forget_all()
    _, generation = await shared.get(user_id)
    await shared.put(_account(user_id, 4), generation)
    assert (await shared.get(user_id))[0] is None


async def test_entries_end_by_themselves(redis: Redis, servers: EmbeddedServers) -> None:
    shared, account = SharedCache(redis), _account(uuid4(), 1)
    _, generation = await shared.get(account.user.id)
    await shared.put(account, generation)
    assert servers.addresses.redis_url is not None
    async with raw_redis.Redis.from_url(servers.addresses.redis_url) as client:
        assert 3500 < await client.ttl(f"user:{account.user.id}") <= 3600
        assert 1700 < await client.ttl(f"profile:{account.user.id}") <= 1800


async def test_an_entry_of_another_release_is_a_miss(redis: Redis, servers: EmbeddedServers) -> None:
    shared, account = SharedCache(redis), _account(uuid4(), 1)
    _, generation = await shared.get(account.user.id)
    await shared.put(account, generation)
    assert servers.addresses.redis_url is not None
    async with raw_redis.Redis.from_url(servers.addresses.redis_url) as client:
        await client.set(f"user:{account.user.id}", f'{generation}:1:{{"id":"other shape"}}', keepttl=True)
    assert (await shared.get(account.user.id))[0] is None


async def test_without_the_server_everything_is_a_miss() -> None:
    shared, account = SharedCache(Redis(None)), _account(uuid4(), 1)
    assert await shared.get(account.user.id) == (None, "")
    await shared.put(account, "")
    assert not await shared.drop({account.user.id: 2})
    assert not await shared.forget_all()


async def test_both_levels_ask_the_rows_once(redis: Redis) -> None:
    rows = Rows(_account(uuid4(), 1))
    user_id = rows.account_now.user.id
    local: LocalCache[Account] = LocalCache()
    local.is_trusted = True
    cache = AccountCache(local, SharedCache(redis), rows)
    for _ in range(3):
        assert await cache.get(user_id) == rows.account_now
    assert rows.reads == 1
    fresh: LocalCache[Account] = LocalCache()
    fresh.is_trusted = True
    assert await AccountCache(fresh, SharedCache(redis), rows).get(user_id) == rows.account_now
    assert rows.reads == 1
    assert await cache.get(uuid4()) is None


async def test_a_change_during_a_slow_read_is_seen_by_the_next(redis: Redis) -> None:
    rows = Rows(_account(uuid4(), 1, "Old"))
    user_id = rows.account_now.user.id
    local: LocalCache[Account] = LocalCache()
    local.is_trusted = True
    cache = AccountCache(local, SharedCache(redis), rows)

    def change() -> None:
        rows.account_now = _account(user_id, 2, "New")
        local.drop(user_id, 2)
        rows.meanwhile = lambda: None

    rows.meanwhile = change
    await cache.get(user_id)
    found = await cache.get(user_id)
    assert found is not None
    assert found.user.first_name == "New"


async def test_without_trust_the_rows_are_asked_each_time(redis: Redis) -> None:
    rows = Rows(_account(uuid4(), 1))
    cache = AccountCache(LocalCache(), SharedCache(redis), rows)
    for _ in range(3):
        assert await cache.get(rows.account_now.user.id) == rows.account_now
    assert rows.reads == 3


async def test_who_can_write_to_redis_makes_nobody_an_admin(redis: Redis) -> None:
    rows = Rows(_account(uuid4(), 1))
    user_id = rows.account_now.user.id
    shared = SharedCache(redis)
    _, generation = await shared.get(user_id)
    forged = rows.account_now.user.model_copy(update={"role": "admin"})
    await shared.put(Account(forged, rows.account_now.profile), generation)
    local: LocalCache[Account] = LocalCache()
    local.is_trusted = True
    found = await AccountCache(local, shared, rows).get(user_id)
    assert found is not None
    assert found.user.role == "user"
