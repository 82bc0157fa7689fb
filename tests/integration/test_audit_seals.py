"""The audit log on real servers: sealed behind whoever writes it, and what its owner does to it by hand is named."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client

from adapters.audit_heads import publish_head
from adapters.audit_log import AuditRow, add_audit_row
from adapters.audit_seals import COLUMNS, add_seal, seals_behind
from adapters.embedded import EmbeddedServers
from adapters.erasure import erase_user
from adapters.event_log import Trail, unsent_events
from adapters.keys import Keys
from adapters.migrations import migrate
from adapters.nats import close, connect
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database, role_of
from adapters.seal_keys import SealKeys
from adapters.settings import Settings
from adapters.streams import SEALS_STREAM, SEALS_SUBJECT, provision
from adapters.telemetry import Metrics
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from domain.audit_chain import Link, packed, seal_rows, unpacked
from domain.audit_walk import Kind
from domain.user import User
from handlers.audit_verification import Verdict, verify
from handlers.events.audit import Audit
from handlers.sealing import Sealer
from tests.builders import NOW, ORIGIN, a_user, settings_of

SEAL_ROWS = 4
Named = set[tuple[Kind, int, int]]


class Bench:
    """A database and a stream with nothing in them, and who writes, seals and verifies."""

    def __init__(
        self, settings: Settings, database: Database, owner: asyncpg.Connection, bus: Client, keys: Keys
    ) -> None:
        self.settings = settings
        self.database, self.owner, self.bus, self.keys = database, owner, bus, SealKeys(keys)
        self.personal, self.metrics = PersonalData(keys), Metrics()
        self.trail = Trail(request_id=uuid4().hex, ip="192.0.2.77", user_agent="an agent")

    def sealer(self) -> Sealer:
        return Sealer(self.database, self.bus, self.keys, self.metrics)

    async def seal(self) -> None:
        await self.sealer().seal_once()

    async def act(self, connection: Connection, action: str = "login_refused") -> None:
        row = AuditRow(
            action=action, success=False, at=datetime.now(UTC), resource_id="1", personal={"email": "ada@example.org"}
        )
        await add_audit_row(connection, self.personal, self.trail, row)

    async def acts(self, count: int) -> None:
        for _ in range(count):
            async with self.database.transaction() as connection:
                await self.act(connection)

    async def register(self) -> User:
        """A user with events, each of them audited."""
        user = a_user()
        async with unit_of_work(self.database, self.personal, self.trail, announce=lambda _: None) as work:
            user.refuse_password(origin=ORIGIN, at=NOW)
            assert await work.users.add(user)
            await work.commit(Empty())
        await self.audit(user)
        return user

    async def audit(self, user: User) -> None:
        async with self.database.connection() as connection:
            events, _ = await unsent_events(connection, self.personal, [user.id], events_max=10)
        for stored in events:
            await Audit(self.database, self.personal).handle(stored)

    async def verdict(self, from_position: int | None = None) -> Verdict:
        return await verify(
            self.database, self.personal, self.keys, self.bus.jetstream(), from_position=from_position,
            tell=lambda *_: None,
        )  # fmt: skip

    async def named(self) -> Named:
        return {(fault.kind, fault.first, fault.last) for fault in (await self.verdict()).faults}

    @asynccontextmanager
    async def by_hand(self, *statements: str) -> AsyncIterator[None]:
        """What an owner does, whom no trigger stops; undone at the end."""
        await self.owner.execute(
            "CREATE TEMP TABLE rows_kept AS TABLE audit_logs; CREATE TEMP TABLE seals_kept AS TABLE audit_seals"
        )
        for statement in statements:
            await self.owner.execute(statement)
        try:
            yield
        finally:
            await self.owner.execute(
                "TRUNCATE audit_logs, audit_seals; INSERT INTO audit_seals TABLE seals_kept; DROP TABLE seals_kept;"
                f"INSERT INTO audit_logs (position, {', '.join(COLUMNS)}) OVERRIDING SYSTEM VALUE "
                f"SELECT position, {', '.join(COLUMNS)} FROM rows_kept; DROP TABLE rows_kept"
            )


@pytest_asyncio.fixture(scope="module")
async def own_database(servers: EmbeddedServers, database_url: str) -> AsyncIterator[tuple[str, str]]:
    """A database that nobody else writes to: its address for the application, and for its owner."""
    addresses, name = servers.addresses, f"sealed_{uuid4().hex}"
    admin = await asyncpg.connect(addresses.database_admin_url)
    await admin.execute(f"CREATE DATABASE {name} OWNER {role_of(addresses.database_owner_url)}")
    ours, owners = (f"{url.rpartition('/')[0]}/{name}" for url in (database_url, addresses.database_owner_url))
    await migrate(owners, app_role=role_of(ours))
    yield ours, owners
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest_asyncio.fixture
async def bench(
    servers: EmbeddedServers, own_database: tuple[str, str], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    for module in ("adapters.audit_seals", "handlers.sealing"):
        monkeypatch.setattr(f"{module}.ROWS_MAX", SEAL_ROWS)
    settings = settings_of(own_database[0], nats_url=servers.addresses.nats_worker_url)
    database, owner = await Database.connect(settings), await asyncpg.connect(own_database[1])
    bus = await connect(settings, name="test", on_closed=_nothing)
    await provision(bus.jetstream(), settings, ())
    await bus.jetstream().purge_stream(SEALS_STREAM)
    await owner.execute(
        "ALTER TABLE audit_logs DISABLE TRIGGER USER; ALTER TABLE audit_seals DISABLE TRIGGER USER;"
        "ALTER TABLE events DISABLE TRIGGER USER;"
        "TRUNCATE audit_logs, audit_seals, events, outbox, users, user_keys RESTART IDENTITY CASCADE"
    )
    made = Bench(settings, database, owner, bus, keys)
    async with database.connection() as connection:
        await made.personal.keys_of(connection, {None})
    yield made
    await close(bus)
    await owner.close()
    await database.close()


async def _nothing() -> None:
    return


@pytest_asyncio.fixture
async def sealed(bench: Bench) -> Bench:
    """Twelve rows of acts and events under three seals, position 3 burned; and one row that waits for its seal."""
    await bench.acts(2)
    await bench.owner.fetchval("SELECT nextval(pg_get_serial_sequence('audit_logs', 'position'))")
    for _ in range(3):
        await bench.register()
    await bench.acts(4)
    await bench.seal()
    await bench.acts(1)
    return bench


async def test_what_nobody_touched_is_clean_from_any_position_on(sealed: Bench) -> None:
    verdict = await sealed.verdict()
    assert verdict == Verdict(rows=13, seals=3, unsealed=1, unpublished=0, faults=[], unnamed=0)
    await sealed.seal()
    assert sealed.metrics.audit_unsealed_seconds._value.get() == 0
    assert sealed.metrics.audit_seals._value.get() == 4
    audited = await sealed.verdict()
    assert (audited.rows, audited.seals, audited.unsealed, audited.faults) == (14, 4, 0, [])
    for position, rows in ((1, 15), (6, 11), (99, 3)):
        found = await sealed.verdict(position)
        assert not found.faults
        assert found.rows >= rows - 8


async def test_looking_is_on_record(sealed: Bench) -> None:
    await sealed.verdict()
    row = await sealed.owner.fetchrow("SELECT * FROM audit_logs WHERE action = 'audit_verified'")
    assert row is not None
    assert row["success"]
    assert '"operator": "operator:' in row["details"] or '"operator":"operator:' in row["details"]


async def test_an_erased_users_rows_still_verify(bench: Bench) -> None:
    user = await bench.register()
    await bench.acts(3)
    await bench.seal()
    async with bench.database.transaction() as connection:
        await connection.execute("UPDATE users SET status = 'deleted' WHERE id = $1", user.id)
        assert await erase_user(connection, user.id, bench.trail, at=NOW)
    assert await bench.owner.fetchval("SELECT count(*) FROM user_keys WHERE user_id = $1", user.id) == 0
    assert (await bench.verdict()).faults == []
    await bench.audit(user)
    await bench.seal()
    found = await bench.verdict()
    assert (found.faults, found.unsealed) == ([], 0)
    assert await bench.owner.fetchval("SELECT count(*) FROM audit_logs WHERE action = 'user_erased'") == 1


_OTHERWISE = {
    "id": "gen_random_uuid()", "event_id": "gen_random_uuid()", "user_id": "gen_random_uuid()",
    "actor_id": "gen_random_uuid()", "success": "NOT success", "created_at": "created_at + interval '1 microsecond'",
    "details": """'{"email": "eve@example.org"}'""",
}  # fmt: skip


async def test_each_edited_column_is_named(sealed: Bench) -> None:
    for column in COLUMNS:
        other = _OTHERWISE.get(column, "'another'")
        async with sealed.by_hand(f"UPDATE audit_logs SET {column} = {other} WHERE position = 2"):
            assert (Kind.ROW_EDITED, 2, 2) in await sealed.named(), column
    assert not await sealed.named()


_COPIED = ", ".join(name for name in COLUMNS if name != "id")
_ADD_AT = f"""
INSERT INTO audit_logs (position, id, {_COPIED}) OVERRIDING SYSTEM VALUE
SELECT {{}}, gen_random_uuid(), {_COPIED} FROM audit_logs WHERE position = 2"""
_FORGE = """
INSERT INTO audit_logs (id, event_id, user_id, action, resource, success, created_at)
SELECT gen_random_uuid(), {}, id, 'user_role_changed', 'user', true, now() FROM users LIMIT 1"""
_SWAP = f"""
CREATE TEMP TABLE two AS SELECT * FROM audit_logs WHERE position IN (2, 12);
DELETE FROM audit_logs WHERE position IN (2, 12);
INSERT INTO audit_logs (position, {", ".join(COLUMNS)}) OVERRIDING SYSTEM VALUE
SELECT 14 - position, {", ".join(COLUMNS)} FROM two;
DROP TABLE two"""
_OTHER_SIGNATURE = "signature = (SELECT signature FROM audit_seals WHERE number = 1)"
BY_HAND: dict[str, Named] = {
    "DELETE FROM audit_logs WHERE position = 5": {(Kind.ROW_REMOVED, 5, 5)},
    _ADD_AT.format(3): {(Kind.ROW_INSERTED, 3, 3)},
    _ADD_AT.format(-7): {(Kind.ROW_INSERTED, -7, -7)},
    "DELETE FROM audit_seals WHERE number = 3; DELETE FROM audit_logs WHERE position > 9": {(Kind.TAIL_CUT, 3, 3)},
    "DELETE FROM audit_seals WHERE number > 1": {(Kind.TAIL_CUT, 2, 3)},
    "TRUNCATE audit_seals, audit_logs": {(Kind.TAIL_CUT, 1, 3)},
    "DELETE FROM audit_seals WHERE number = 2": {(Kind.SEAL_REMOVED, 2, 2)},
    "UPDATE audit_seals SET row_count = 3 WHERE number = 2": {(Kind.SEAL_ALTERED, 2, 2)},
    "UPDATE audit_seals SET entries = entries || '\\x00' WHERE number = 2": {(Kind.SEAL_ALTERED, 2, 2)},
    f"UPDATE audit_seals SET {_OTHER_SIGNATURE} WHERE number = 2": {(Kind.CHAIN_ANEW, 2, 2)},
    _FORGE.format("gen_random_uuid()"): {(Kind.ROW_FORGED, 0, 0)},
    _FORGE.format("NULL"): {(Kind.ROW_FORGED, 0, 0)},
    _ADD_AT.format(2**63 - 1): {(Kind.ROW_FORGED, 0, 0)},
    "UPDATE audit_seals SET number = 9223372036854775807 WHERE number = 3": {
        (Kind.TAIL_CUT, 3, 2**63 - 2),
        (Kind.SEAL_ALTERED, 2**63 - 1, 2**63 - 1),
    },
    _SWAP: {(Kind.ROWS_SWAPPED, 2, 12)},
}
"""What an owner does, and how it is named; a forged row is at the end."""


async def test_what_is_done_by_hand_is_named(sealed: Bench) -> None:
    for statement, named in BY_HAND.items():
        async with sealed.by_hand(statement):
            end = await sealed.owner.fetchval("SELECT max(position) FROM audit_logs")
            expected = {(kind, first or end, last or end) for kind, first, last in named}
            assert await sealed.named() == expected, statement
        assert not await sealed.named(), statement


async def test_a_row_whose_event_tells_something_else_is_forged(sealed: Bench) -> None:
    """Before it is sealed nobody else could tell: the event's own row was taken away for it."""
    user = await sealed.register()
    for change in ("action = 'user_login'", "user_id = actor_id", "created_at = now()", "details = '{\"a\": 1}'"):
        edit = f"""
            UPDATE audit_logs SET actor_id = gen_random_uuid() WHERE user_id = '{user.id}';
            UPDATE audit_logs SET {change} WHERE position =
                (SELECT max(position) FROM audit_logs WHERE user_id = '{user.id}')"""
        async with sealed.by_hand(edit):
            assert {kind for kind, _, _ in await sealed.named()} == {Kind.ROW_FORGED}, change


async def test_a_forged_row_is_named_after_it_was_sealed_too(sealed: Bench) -> None:
    position = await sealed.owner.fetchval(
        "INSERT INTO audit_logs (id, event_id, action, resource, success, created_at) "
        "VALUES (gen_random_uuid(), gen_random_uuid(), 'user_login', 'user', true, now()) RETURNING position"
    )
    await sealed.seal()
    assert await sealed.named() == {(Kind.ROW_FORGED, position, position)}


async def test_a_position_that_was_never_drawn_keeps_nothing_from_its_seal(sealed: Bench) -> None:
    await sealed.owner.execute(_ADD_AT.format(10**12))
    await sealed.acts(3)
    await sealed.seal()
    found = await sealed.verdict()
    assert (found.unsealed, {(fault.kind, fault.first) for fault in found.faults}) == (1, {(Kind.ROW_FORGED, 10**12)})


@pytest.mark.parametrize("knows_the_key", [False, True])
async def test_a_chain_computed_anew_is_named(sealed: Bench, knows_the_key: bool) -> None:
    """By its signatures; whoever has the key, too, cannot take back what was published."""
    async with sealed.by_hand("UPDATE audit_logs SET action = 'nothing' WHERE position = 2", "TRUNCATE audit_seals"):
        await seal_anew(sealed, knows_the_key=knows_the_key)
        faults = (await sealed.verdict()).faults
    assert {(fault.kind, fault.first, fault.last) for fault in faults} == {(Kind.CHAIN_ANEW, 1, 3)}
    assert len(faults) == (1 if knows_the_key else 2)


async def seal_anew(bench: Bench, *, knows_the_key: bool, up_to: int = 13, seals: int = 3) -> None:
    def sign(hashed: bytes) -> str:
        signature = bench.keys.sign(hashed)
        return signature if knows_the_key else bench.keys.sign(bytes(32))

    for _ in range(seals):
        async with bench.database.transaction() as connection:
            assert await add_seal(connection, up_to=up_to, published=None, sign=sign, is_ours=lambda _: True)


CASES = 200


@dataclass(frozen=True, slots=True)
class Tampering:
    """What an owner does by hand, and a fault that is named for it."""

    statements: tuple[str, ...]
    named: tuple[Kind, int, int]
    anew: bool = False


def tampering(positions: list[int], burned: list[int], seals: int) -> Tampering:
    """One of all kinds, somewhere in a log of these positions under so many seals."""
    one, another = sorted(random.sample(positions, 2))
    gap, seal, column = random.choice(burned), random.randint(2, seals), random.choice(COLUMNS)
    other = _OTHERWISE.get(column, "'another'")
    edited = f"UPDATE audit_logs SET {column} = {other} WHERE position = {one}"
    swapped = _SWAP.replace("(2, 12)", f"({one}, {another})").replace("14 -", f"{one + another} -")
    return random.choice(
        [
            Tampering((edited,), (Kind.ROW_EDITED, one, one)),
            Tampering((f"DELETE FROM audit_logs WHERE position = {one}",), (Kind.ROW_REMOVED, one, one)),
            Tampering((_ADD_AT.format(gap).replace("= 2", "= 1"),), (Kind.ROW_INSERTED, gap, gap)),
            Tampering((swapped,), (Kind.ROWS_SWAPPED, one, another)),
            Tampering((f"DELETE FROM audit_seals WHERE number >= {seal}",), (Kind.TAIL_CUT, seal, seals)),
            Tampering((_FORGE.format(random.choice(["NULL", "gen_random_uuid()"])),), (Kind.ROW_FORGED, 0, 0)),
            Tampering((edited, "TRUNCATE audit_seals"), (Kind.CHAIN_ANEW, 1, seals), anew=True),
        ]
    )


async def test_two_hundred_random_tamperings_are_each_named(bench: Bench) -> None:
    burned: list[int] = []
    for _ in range(6):
        await bench.acts(random.randint(1, 3))
        await bench.register()
        drawn = "SELECT nextval(pg_get_serial_sequence('audit_logs', 'position'))"
        burned.append(await bench.owner.fetchval(drawn))
    await bench.acts(4)
    await bench.seal()
    seals, last = await bench.owner.fetchrow("SELECT max(number), max(to_position) FROM audit_seals") or (0, 0)
    rows = await bench.owner.fetch("SELECT position FROM audit_logs WHERE position <= $1", last)
    sealed = {row["position"] for row in rows}
    kinds: set[Kind] = set()
    for _ in range(CASES):
        case = tampering(sorted(sealed), [gap for gap in burned if gap < last], seals)
        kinds.add(case.named[0])
        async with bench.by_hand(*case.statements):
            if case.anew:
                await seal_anew(bench, knows_the_key=random.random() < 0.5, up_to=last, seals=seals)
            end = await bench.owner.fetchval("SELECT max(position) FROM audit_logs")
            kind, first, to = case.named
            assert (kind, first or end, to or end) in await bench.named(), case
    assert not await bench.named()
    assert len(kinds) == 7


async def test_a_tail_that_was_cut_is_named_for_good(sealed: Bench) -> None:
    await sealed.owner.execute("DELETE FROM audit_seals WHERE number > 1; DELETE FROM audit_logs WHERE position > 8")
    sealer = sealed.sealer()
    for _ in range(2):
        await sealed.acts(3)
        await sealer.seal_once()
    assert sealed.metrics.audit_cuts._value.get() == 1
    assert await sealed.named() == {(Kind.TAIL_CUT, 2, 3)}
    async with sealed.database.connection() as connection:
        assert [seal.number for seal in await seals_behind(connection, 0, seals_max=9)][:2] == [1, 4]
    async with sealed.by_hand("UPDATE audit_logs SET success = NOT success WHERE position = 6"):
        assert await sealed.named() == {(Kind.TAIL_CUT, 2, 3), (Kind.ROW_EDITED, 6, 6)}


async def test_nothing_is_sealed_before_who_began_earlier_is_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.database.transaction() as slow:
        await bench.act(slow, "slow")
        await bench.acts(1)
        monkeypatch.setattr("handlers.sealing.SETTLE_S", 0.1)
        await bench.seal()
        assert (await bench.verdict()).seals == 0
        monkeypatch.setattr("handlers.sealing.SETTLE_S", 20)
        sealing = asyncio.create_task(bench.seal())
        await bench.acts(1)  # nobody waits for the sealer
        await asyncio.sleep(0.1)
        assert not sealing.done()
    await asyncio.wait_for(sealing, 10)
    await bench.seal()
    found = await bench.verdict()
    assert (found.faults, found.unsealed) == ([], 0)
    first = await bench.owner.fetchval("SELECT action FROM audit_logs ORDER BY position LIMIT 1")
    assert first == "slow"


async def test_many_write_and_many_seal_and_the_chain_is_one(bench: Bench) -> None:
    async def write() -> None:
        for number in range(15):
            async with bench.database.transaction() as connection:
                await bench.act(connection)
                await asyncio.sleep(0.002 * (number % 3))
                await bench.act(connection)

    async def seal() -> None:
        sealer = bench.sealer()
        for _ in range(6):
            await sealer.seal_once()

    await asyncio.gather(*(write() for _ in range(8)), *(seal() for _ in range(3)), bench.verdict())
    await bench.seal()
    found = await bench.verdict()
    assert (found.faults, found.unsealed, found.unpublished) == ([], 0, 0)
    assert found.rows >= 8 * 15 * 2


async def test_heads_wait_for_the_bus_and_are_published_again_where_it_lost_them(bench: Bench) -> None:
    await bench.acts(5)
    lost = bench.sealer()
    away = await connect(bench.settings, name="away", on_closed=_nothing)
    await close(away)
    lost._js = away.jetstream()
    await lost.seal_once()
    found = await bench.verdict()
    assert (found.seals, found.unpublished, found.faults) == (2, 2, [])
    await bench.seal()
    assert (await bench.verdict()).unpublished == 0
    await bench.bus.jetstream().purge_stream(SEALS_STREAM)
    assert (await bench.verdict()).unpublished > 0
    await bench.seal()
    found = await bench.verdict()
    assert (found.unpublished, found.faults) == (0, [])


async def test_a_message_that_is_no_head_is_named_and_stops_nobody(sealed: Bench) -> None:
    await sealed.bus.jetstream().publish(SEALS_SUBJECT, b"{}")
    async with sealed.database.connection() as connection:
        [first] = await seals_behind(connection, 0, seals_max=1)
    forged = seal_rows(unpacked(packed([(1, bytes(32))])), Link(10**9), at_us=1, sign=lambda _: first.signature)
    sequence = (await sealed.bus.jetstream().stream_info(SEALS_STREAM)).state.last_seq
    await publish_head(sealed.bus.jetstream(), forged, behind_sequence=sequence)
    await sealed.seal()
    kinds = [kind for kind, _, _ in await sealed.named()]
    assert kinds == [Kind.HEAD_FOREIGN]
    assert (await sealed.verdict()).unpublished == 0


@pytest.mark.parametrize(
    "nonsense", [f"to_position = {10**12}", f"sealed_us = {2**62}", f"number = {2**63 - 1}", "number = -1"]
)
async def test_a_made_up_seal_ends_no_process_and_is_told(
    sealed: Bench, nonsense: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its owner can keep us from sealing, but not without an alarm."""
    at = datetime.now(UTC) - timedelta(seconds=90)
    async with sealed.database.transaction() as connection:
        await add_audit_row(connection, sealed.personal, sealed.trail, AuditRow(action="x", success=True, at=at))
    await sealed.owner.execute(f"UPDATE audit_seals SET {nonsense} WHERE number = 3")
    sealer = sealed.sealer()
    await sealer.seal_once()
    if nonsense == "number = -1":  # the third is gone, and its rows are sealed anew
        assert (Kind.TAIL_CUT, 3, 3) in await sealed.named()
        return
    assert "none of ours" in capfd.readouterr().out
    assert sealed.metrics.audit_unsealed_seconds._value.get() > 0
    assert Kind.SEAL_ALTERED in {kind for kind, _, _ in await sealed.named()}
    await sealed.bus.jetstream().purge_stream(SEALS_STREAM)
    await sealer.seal_once()


async def test_the_age_of_the_oldest_row_without_a_seal_is_told(bench: Bench) -> None:
    await bench.acts(1)
    await bench.seal()
    async with bench.database.transaction() as connection:
        at = datetime.now(UTC) - timedelta(seconds=90)
        await add_audit_row(connection, bench.personal, bench.trail, AuditRow(action="x", success=True, at=at))
    async with bench.database.transaction() as slow:
        await bench.act(slow)
        sealer = bench.sealer()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("handlers.sealing.SETTLE_S", 0)
            await sealer.seal_once()
    assert 89 < bench.metrics.audit_unsealed_seconds._value.get() < 120
