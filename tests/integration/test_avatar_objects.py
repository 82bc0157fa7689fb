"""Avatars in a real object store: put, read, removed to the last byte; and what a crash or a race leaves behind."""

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js.errors import NotFoundError, ObjectNotFoundError

from adapters.avatar_store import AvatarStore, hashes_of, remove_all
from adapters.avatar_uploads import AvatarUploads, NoSuchUpload
from adapters.avatars import (
    Leftover,
    claim_leftovers,
    note_before_put,
    note_replaced,
    note_shown,
)
from adapters.embedded import EmbeddedServers
from adapters.event_log import Trail
from adapters.nats import close, connect
from adapters.object_bucket import Bucket
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.streams import provision
from adapters.unit_of_work import unit_of_work
from contracts.avatar import AVATARS_BUCKET, UPLOADS_BUCKET
from contracts.wire import Empty
from domain.avatar import Avatar
from domain.refusals import Stale, Unavailable
from domain.user import User
from handlers import leftovers
from handlers.endings import Loops
from handlers.leftovers import remove_due, remove_leftover
from tests.builders import NOW, a_user, settings_of
from tests.pictures import description, picture
from tests.program import until


@pytest_asyncio.fixture(scope="module")
async def bus(servers: EmbeddedServers, database_url: str) -> AsyncIterator[Client]:
    settings = settings_of(database_url, nats_url=servers.addresses.nats_worker_url)

    async def on_closed() -> None:
        return

    client = await connect(settings, name="test", on_closed=on_closed)
    await provision(client.jetstream(), settings, ())
    yield client
    await close(client)


@pytest.fixture
def store(bus: Client) -> AvatarStore:
    return AvatarStore(bus)


@pytest_asyncio.fixture
async def user(database: Database, personal: PersonalData, trail: Trail) -> User:
    found = a_user()
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(found)
        await work.commit(Empty())
    return found


def an_avatar(owner: UUID, seed: int = 0) -> tuple[Avatar, dict[int, bytes]]:
    """A fresh avatar of a picture; one seed is one picture."""
    squares = {size: picture((size, size + seed), "WEBP") for size in (256, 64)}
    return Avatar.of(uuid4(), owner, hashes_of(squares)), squares


async def names(bus: Client, owner: UUID) -> list[str]:
    """The names under which a user has objects, each whole."""
    found = []
    objects = await bus.jetstream().object_store(AVATARS_BUCKET)
    described = await Bucket(bus, AVATARS_BUCKET).subjects(f"$O.{AVATARS_BUCKET}.M.>")
    try:
        entries = await objects.list(ignore_deletes=True) if described else []
    except NotFoundError:  # what the library says of none
        entries = []
    for entry in entries:
        if entry.name.startswith(str(owner)):
            assert (await objects.get(entry.name)).data
            found.append(entry.name)
    return sorted(found)


async def chunks(bus: Client, owner: UUID) -> list[str]:
    return await Bucket(bus, AVATARS_BUCKET).subjects(f"$O.{AVATARS_BUCKET}.C.{owner}.>")


async def show(database: Database, personal: PersonalData, trail: Trail, user: User, avatar: Avatar) -> Avatar | None:
    """The transaction of an upload."""
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        locked = await work.users.lock(user.id)
        assert locked
        before = locked.change_avatar(avatar, at=NOW)
        await note_shown(work.connection, avatar)
        if before is not None:
            await note_replaced(work.connection, user.id, before)
        await work.users.save(locked)
        await work.commit(Empty())
    return before


async def put(database: Database, store: AvatarStore, owner: UUID, seed: int = 0) -> Avatar:
    avatar, squares = an_avatar(owner, seed)
    async with database.connection() as connection:
        await note_before_put(connection, owner, avatar)
    await store.put(owner, avatar, squares)
    return avatar


async def due_now(owner: asyncpg.Connection) -> None:
    await owner.execute("UPDATE avatar_leftovers SET due_at = now()")


async def test_what_is_put_is_read_and_what_is_removed_is_gone(bus: Client, store: AvatarStore) -> None:
    user_id = uuid4()
    avatar, squares = an_avatar(user_id)
    await store.put(user_id, avatar, squares)
    for size, content in squares.items():
        assert await store.get(user_id, avatar.id, avatar.sizes[str(size)]) == content
    assert await names(bus, user_id) == sorted(avatar.sizes.values())
    for _ in range(2):
        await store.remove(user_id, avatar.id, avatar.sizes)
        assert await names(bus, user_id) == []
        assert await chunks(bus, user_id) == []
    assert await store.get(user_id, avatar.id, avatar.sizes["64"]) is None


async def test_bytes_that_are_not_those_of_the_name_are_not_shown(store: AvatarStore) -> None:
    user_id = uuid4()
    avatar, squares = an_avatar(user_id)
    await store.put(user_id, avatar, squares | {64: b"RIFF something else"})
    assert await store.get(user_id, avatar.id, avatar.sizes["64"]) is None
    assert await store.get(user_id, avatar.id, avatar.sizes["256"])
    await store.remove(user_id, avatar.id, avatar.sizes)


async def test_erasing_leaves_nothing_of_a_user_and_all_of_the_others(bus: Client, store: AvatarStore) -> None:
    gone, kept = uuid4(), uuid4()
    for user_id in (gone, kept):
        for seed in range(3):
            avatar, squares = an_avatar(user_id, seed)
            await store.put(user_id, avatar, squares)
    for _ in range(2):
        await remove_all(bus, gone)
        assert await chunks(bus, gone) == []
        assert await names(bus, gone) == []
    assert len(await names(bus, kept)) == 6
    await remove_all(bus, kept)


async def test_what_is_removed_stands_in_no_file_of_the_server(
    servers: EmbeddedServers, bus: Client, store: AvatarStore
) -> None:
    """Neither the squares, nor the upload with all that a camera wrote into it."""
    user_id, marks = uuid4(), [uuid4().hex.encode(), uuid4().hex.encode()]
    avatar, squares = an_avatar(user_id)
    await store.put(user_id, avatar, squares | {256: marks[0] * 100})
    uploads, name = Bucket(bus, UPLOADS_BUCKET), f"{user_id}/{uuid4()}"
    content = marks[1] * 4000
    await bus.publish(uploads.chunks("abc"), content)
    await bus.publish(uploads.description(name), description(name, content, nuid="abc"))
    await until(lambda: all(_holds(servers, mark) for mark in marks), within_s=10, what="all of it in the files")
    upload = await AvatarUploads(bus).read(name)
    assert upload.content == content
    await AvatarUploads(bus).destroy(upload.seqs)
    await remove_all(bus, user_id)
    assert not any(_holds(servers, mark) for mark in marks)


def _holds(servers: EmbeddedServers, mark: bytes) -> bool:
    return any(mark in path.read_bytes() for path in (servers._data_dir / "nats").rglob("*") if path.is_file())


async def test_what_nothing_came_of_is_removed_when_it_is_due(
    database: Database, owner: asyncpg.Connection, bus: Client, store: AvatarStore
) -> None:
    """A process that died between the objects and the row leaves its note behind."""
    user_id = uuid4()
    await put(database, store, user_id)
    await remove_due(database, store)
    assert len(await names(bus, user_id)) == 2  # it may still be on its way
    await due_now(owner)
    await asyncio.gather(*(remove_due(database, store) for _ in range(3)))
    assert await names(bus, user_id) == []
    assert not await owner.fetch("SELECT FROM avatar_leftovers")


async def test_what_is_being_removed_cannot_be_shown_any_more(
    database: Database, owner: asyncpg.Connection, store: AvatarStore, user: User, personal: PersonalData, trail: Trail
) -> None:
    avatar = await put(database, store, user.id)
    await due_now(owner)
    async with database.connection() as connection:
        claimed = await claim_leftovers(connection, rows_max=10)
    assert [leftover.avatar_id for leftover in claimed] == [avatar.id]
    with pytest.raises(Stale):
        await show(database, personal, trail, user, avatar)
    async with database.connection() as connection:
        assert not await claim_leftovers(connection, rows_max=10)  # another process has it
    await due_now(owner)
    await remove_due(database, store)  # who had it has died
    assert not await owner.fetch("SELECT FROM avatar_leftovers")


async def test_what_is_shown_is_never_due(
    database: Database, owner: asyncpg.Connection, bus: Client, store: AvatarStore, user: User, personal: PersonalData,
    trail: Trail,
) -> None:  # fmt: skip
    first, second = [await put(database, store, user.id, seed) for seed in range(2)]
    assert await show(database, personal, trail, user, first) is None
    assert await show(database, personal, trail, user, second) == first
    await due_now(owner)
    await remove_due(database, store)
    assert await names(bus, user.id) == sorted(second.sizes.values())
    assert not await owner.fetch("SELECT FROM avatar_leftovers")


@pytest.mark.parametrize("last_put_is_shown", [True, False])
async def test_an_upload_of_the_same_picture_keeps_its_names_when_the_other_goes(
    database: Database, bus: Client, store: AvatarStore, user: User, personal: PersonalData, trail: Trail,
    last_put_is_shown: bool,
) -> None:  # fmt: skip
    uploads = [await put(database, store, user.id) for _ in range(2)]
    shown, other = reversed(uploads) if last_put_is_shown else uploads
    await show(database, personal, trail, user, shown)
    await remove_leftover(database, store, Leftover(other.id, user.id, other.sizes))
    assert await names(bus, user.id) == sorted(shown.sizes.values())
    assert len(await chunks(bus, user.id)) == 2
    assert await store.get(user.id, shown.id, shown.sizes["256"])


async def test_a_store_that_is_away_says_so_in_time_and_what_is_due_stays_due(
    database: Database, owner: asyncpg.Connection, bus: Client, store: AvatarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_id = uuid4()
    avatar = await put(database, store, user_id)
    away = AvatarStore(bus)
    monkeypatch.setattr(away._bucket, "stream", "OBJ_nobody")
    monkeypatch.setattr(away._bucket, "name", "nobody")
    await due_now(owner)
    began = time.monotonic()
    for act in (
        away.put(user_id, *an_avatar(user_id)),
        away.get(user_id, avatar.id, avatar.sizes["64"]),
        away.remove(user_id, avatar.id, avatar.sizes),
        away.remove_all(user_id),
    ):
        with pytest.raises(Unavailable):
            await act
    await remove_due(database, away)
    assert time.monotonic() - began < 12
    assert await owner.fetchval("SELECT removing FROM avatar_leftovers WHERE avatar_id = $1", avatar.id)
    await due_now(owner)
    await remove_due(database, store)
    assert await names(bus, user_id) == []


async def test_a_cut_link_is_no_wait(servers: EmbeddedServers, database_url: str) -> None:
    settings = settings_of(database_url, nats_url=servers.addresses.nats_worker_url)

    async def on_closed() -> None:
        return

    client = await connect(settings, name="test", on_closed=on_closed)
    await client.close()
    avatar = an_avatar(uuid4())
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await AvatarStore(client).put(uuid4(), *avatar)
    with pytest.raises(Unavailable):
        await AvatarUploads(client).read(f"{uuid4()}/{uuid4()}")
    assert time.monotonic() - began < 1.5  # an answer is waited for two seconds


async def test_the_jobs_come_by_themselves(
    database: Database, owner: asyncpg.Connection, bus: Client, store: AvatarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "PERIOD_S", 0.05)
    user_id = uuid4()
    await put(database, store, user_id)
    await due_now(owner)
    async with Loops() as loops, asyncio.timeout(10):
        loops.start(leftovers.remove_leftovers(database, store), "avatars")
        while await owner.fetch("SELECT FROM avatar_leftovers"):
            await asyncio.sleep(0.02)
    assert await names(bus, user_id) == []


async def test_an_object_that_was_deleted_as_clients_do_it_is_no_upload(bus: Client) -> None:
    objects = await bus.jetstream().object_store(AVATARS_BUCKET)  # this one acknowledges a worker
    await objects.put("mine", b"content")
    await objects.delete("mine")
    with pytest.raises(ObjectNotFoundError):
        await objects.get_info("mine")
    uploads = AvatarUploads(bus)
    uploads._bucket = Bucket(bus, AVATARS_BUCKET)
    with pytest.raises(NoSuchUpload):
        await uploads.read("mine")
