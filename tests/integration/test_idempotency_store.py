"""Idempotency keys in the database: one does the work, the others wait, and only who knows the key reads the reply."""

import asyncio
import secrets
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.idempotency import Claim, IdempotencyKeys, Kept
from adapters.keys import Keys, Ring
from adapters.postgres import Database
from domain.refusals import IdempotencyKeyReused, Stale

LEASE = timedelta(seconds=30)
MOMENT = timedelta(milliseconds=50)
USER = uuid4()


class Store:
    """Claims of one subject, with the words that a test does not care for filled in."""

    def __init__(self, database: Database, keys: Keys) -> None:
        self.database = database
        self.keys = IdempotencyKeys(database, keys)

    async def claim(
        self,
        key: str,
        *,
        body: bytes = b"{}",
        lease: timedelta = LEASE,
        user_id: UUID | None = USER,
        subject: str = "users.v1.test",
        secret: bool = False,
    ) -> Claim | Kept | None:
        return await self.keys.claim(
            key, subject=subject, user_id=user_id, canonical_body=body, lease=lease, holds_secrets=secret
        )

    async def won(self, key: str, *, lease: timedelta = LEASE, secret: bool = False) -> Claim:
        claim = await self.claim(key, lease=lease, secret=secret)
        assert isinstance(claim, Claim)
        return claim

    async def keep(self, claim: Claim, body: str = '{"a":1}', *, success: bool = True) -> None:
        async with self.database.transaction() as connection:
            await claim.keep(connection, success=success, body=body)


@pytest.fixture
def store(database: Database, keys: Keys) -> Store:
    return Store(database, keys)


@pytest.fixture
def key() -> str:
    return secrets.token_urlsafe(24)


async def test_of_many_at_once_one_does_the_work(store: Store, key: str) -> None:
    claims = await asyncio.gather(*(store.claim(key) for _ in range(30)))
    assert sum(isinstance(claim, Claim) for claim in claims) == 1
    assert sum(claim is None for claim in claims) == 29


async def test_the_first_reply_is_given_again(store: Store, key: str) -> None:
    await store.keep(await store.won(key), '{"user":"ü"}')
    assert await store.claim(key) == Kept(True, '{"user":"ü"}', holds_secrets=False, secrets_expired=False)


async def test_a_refusal_is_given_again(store: Store, key: str) -> None:
    await store.keep(await store.won(key), '{"code":"CONFLICT"}', success=False)
    assert await store.claim(key) == Kept(False, '{"code":"CONFLICT"}', holds_secrets=False, secrets_expired=False)


async def test_another_body_is_refused(store: Store, key: str) -> None:
    claim = await store.won(key)
    with pytest.raises(IdempotencyKeyReused):
        await store.claim(key, body=b'{"other":1}')
    await store.keep(claim)
    with pytest.raises(IdempotencyKeyReused):
        await store.claim(key, body=b'{"other":1}')


@pytest.mark.parametrize("other", ["user", "anonymous", "subject", "key"])
async def test_what_belongs_to_another_is_another(store: Store, key: str, other: str) -> None:
    await store.keep(await store.won(key))
    match other:
        case "user":
            found = await store.claim(key, user_id=uuid4())
        case "anonymous":
            found = await store.claim(key, user_id=None)
        case "subject":
            found = await store.claim(key, subject="users.v1.other")
        case _:
            found = await store.claim(key[:-1] + ("a" if key[-1] != "a" else "b"))
    assert isinstance(found, Claim)


async def _until_taken_over(store: Store, key: str) -> Claim:
    async with asyncio.timeout(5):
        while True:
            claim = await store.claim(key)
            if isinstance(claim, Claim):
                return claim
            await asyncio.sleep(0.01)


async def test_a_claim_whose_holder_died_is_taken_over(store: Store, key: str) -> None:
    lost = await store.won(key, lease=MOMENT)
    taken = await _until_taken_over(store, key)
    assert taken.holder != lost.holder
    with pytest.raises(Stale):
        await store.keep(lost)
    await store.keep(taken, '{"by":"the second"}')
    found = await store.claim(key)
    assert isinstance(found, Kept)
    assert found.body == '{"by":"the second"}'
    with pytest.raises(Stale):
        await store.keep(lost)


async def test_what_is_kept_is_kept_though_the_lease_ends(store: Store, key: str) -> None:
    await store.keep(await store.won(key, lease=-LEASE))
    assert isinstance(await store.claim(key), Kept)


async def test_a_rolled_back_effect_keeps_no_reply(store: Store, key: str) -> None:
    claim = await store.won(key)
    async with store.database.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await claim.keep(connection, success=True, body="{}")
        await transaction.rollback()
    assert await store.claim(key) is None
    await store.keys.give_up(claim)
    assert isinstance(await store.claim(key), Claim)


async def test_giving_up_takes_nothing_from_another(store: Store, key: str) -> None:
    lost = await store.won(key, lease=MOMENT)
    taken = await _until_taken_over(store, key)
    await store.keys.give_up(lost)
    assert await store.claim(key) is None
    await store.keep(taken)
    await store.keys.give_up(taken)
    assert isinstance(await store.claim(key), Kept)


async def test_secrets_are_given_again_for_a_minute(store: Store, key: str, owner: asyncpg.Connection) -> None:
    claim = await store.won(key, secret=True)
    await store.keep(claim)
    lasts = await owner.fetchval(
        "SELECT secret_until - clock_timestamp() FROM idempotency_keys WHERE key_mac = $1", claim.key_mac
    )
    assert timedelta(seconds=50) < lasts <= timedelta(seconds=60)
    for offset, expired in (("1 minute", False), ("-1 minute", True)):
        await owner.execute(
            "UPDATE idempotency_keys SET secret_until = now() + $2::text::interval WHERE key_mac = $1",
            claim.key_mac, offset,
        )  # fmt: skip
        found = await store.claim(key)
        assert isinstance(found, Kept)
        assert (found.holds_secrets, found.secrets_expired) == (True, expired)


async def test_a_rotated_server_key_still_finds_the_first_reply(store: Store, keys: Keys, key: str) -> None:
    await store.keep(await store.won(key), '{"first":true}')
    old = keys.ring("idempotency")
    rotated = Ring("new1", {**old.keys, "new1": secrets.token_bytes(32)})
    after = Store(store.database, Keys({**keys.rings, "idempotency": rotated}))
    found = await after.claim(key)
    assert isinstance(found, Kept)
    assert found.body == '{"first":true}'
    with pytest.raises(IdempotencyKeyReused):
        await after.claim(key, body=b'{"another":1}')
    assert await after.keys.find(key, subject="users.v1.test", user_id=USER, canonical_body=b"{}") == found


async def test_after_a_day_a_key_is_free(store: Store, key: str, owner: asyncpg.Connection) -> None:
    claim = await store.won(key)
    await store.keep(claim)
    await owner.execute(
        "UPDATE idempotency_keys SET expires_at = now() - interval '1 s' WHERE key_mac = $1", claim.key_mac
    )
    assert isinstance(await store.claim(key, body=b"another"), Claim)


async def test_the_row_tells_neither_key_nor_body_nor_reply(store: Store, key: str, owner: asyncpg.Connection) -> None:
    body = b'{"password":"a marked word"}'
    claim = await store.claim(key, body=body)
    assert isinstance(claim, Claim)
    await store.keep(claim, '{"token":"a marked reply"}')
    row = await owner.fetchrow("SELECT k::text AS text, k.* FROM idempotency_keys k WHERE key_mac = $1", claim.key_mac)
    assert row is not None
    for word in (key, key.encode().hex(), "marked", b"marked".hex(), body.hex()):
        assert word not in row["text"]


async def test_a_key_in_work_under_an_older_server_key_is_not_claimed_again(database: Database, key: str) -> None:
    older, newer = secrets.token_bytes(32), secrets.token_bytes(32)
    before = Store(database, Keys({"idempotency": Ring("aa", {"aa": older})}))
    after = Store(database, Keys({"idempotency": Ring("bb", {"aa": older, "bb": newer})}))
    claim = await before.won(key)
    assert await after.claim(key) is None
    await before.keep(claim)
    assert isinstance(await after.claim(key), Kept)


async def test_what_took_too_long_under_an_older_server_key_comes_to_nothing(database: Database, key: str) -> None:
    older, newer = secrets.token_bytes(32), secrets.token_bytes(32)
    before = Store(database, Keys({"idempotency": Ring("aa", {"aa": older})}))
    after = Store(database, Keys({"idempotency": Ring("bb", {"aa": older, "bb": newer})}))
    late = await before.won(key, lease=MOMENT)
    await asyncio.sleep(MOMENT.total_seconds() * 2)
    await after.keep(await after.won(key))
    with pytest.raises(Stale):
        await before.keep(late)


async def test_processes_that_take_different_keys_to_be_in_force_do_the_work_once(database: Database, key: str) -> None:
    ring = {"aa": secrets.token_bytes(32), "bb": secrets.token_bytes(32)}
    stores = [Store(database, Keys({"idempotency": Ring(kid, ring)})) for kid in ("aa", "bb")] * 10
    claims = await asyncio.gather(*(store.claim(key) for store in stores))
    assert sum(isinstance(claim, Claim) for claim in claims) == 1
