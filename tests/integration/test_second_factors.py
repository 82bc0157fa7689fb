"""Second factors at rest: sealed for their user, each code accepted once, under the current key after a rotation."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.event_log import Trail
from adapters.hashing import Hasher
from adapters.key_rotation import retire, rotate
from adapters.keys import CannotOpen, Keys, read_keys, write_keys
from adapters.personal_data import PersonalData
from adapters.postgres import Database
from adapters.settings import Argon2Cost
from adapters.two_factor import SecondFactors, TwoFactorSecrets, challenge_of, factor_of
from adapters.unit_of_work import unit_of_work
from contracts.wire import Empty
from domain.two_factor import CHALLENGES_MAX, Challenge, CodeSet, Factor
from handlers.jobs import _CLEARING, _clear
from tests.builders import NOW, a_user

AT_ONCE = 20
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


@dataclass
class Bench:
    """A user in the database, and what is done to their second factor."""

    database: Database
    secrets: TwoFactorSecrets
    user_id: UUID
    factor_id: UUID

    async def factor(self) -> Factor:
        async with self.database.connection() as connection:
            found = await factor_of(connection, self.user_id, device_hash=None, at=NOW)
        assert found is not None
        return found

    async def turn_on(self, *, codes: CodeSet | None = None) -> None:
        async with self.database.transaction() as connection:
            factors = SecondFactors(connection)
            await factors.begin(self.user_id, self.factor_id, self.secrets.seal(self.user_id, SECRET), at=NOW)
            assert await factors.enable(self.user_id, self.factor_id, step=10, at=NOW)
            if codes is not None:
                await factors.put_codes(self.user_id, codes)

    async def use_step(self, step: int, *, wrong_max: int = 0) -> bool:
        async with self.database.transaction() as connection:
            return await SecondFactors(connection).use_step(self.user_id, self.factor_id, step, wrong_max=wrong_max)

    async def use_backup_code(self, code_hash: bytes) -> int | None:
        async with self.database.transaction() as connection:
            return await SecondFactors(connection).use_backup_code(self.user_id, self.factor_id, code_hash, wrong_max=0)


@pytest.fixture
def secrets(keys: Keys) -> TwoFactorSecrets:
    return TwoFactorSecrets(keys)


@pytest.fixture
async def bench(database: Database, personal: PersonalData, trail: Trail, secrets: TwoFactorSecrets) -> Bench:
    user = a_user()
    async with unit_of_work(database, personal, trail, announce=lambda _: None) as work:
        assert await work.users.add(user)
        await work.commit(Empty())
    return Bench(database, secrets, user.id, uuid4())


def test_a_secret_opens_for_its_user_alone(secrets: TwoFactorSecrets) -> None:
    user_id = uuid4()
    sealed = secrets.seal(user_id, SECRET)
    assert SECRET not in sealed
    assert secrets.open(user_id, sealed) == SECRET
    with pytest.raises(CannotOpen):
        secrets.open(uuid4(), sealed)


async def test_a_step_is_accepted_once_whoever_comes_at_the_same_time(bench: Bench) -> None:
    await bench.turn_on()
    assert not await bench.use_step(10)  # it has turned the factor on
    for step in range(11, 61):
        accepted = await asyncio.gather(*(bench.use_step(step) for _ in range(AT_ONCE)))
        assert sum(accepted) == 1
    assert not await bench.use_step(59)


async def test_a_backup_code_is_accepted_once_whoever_comes_at_the_same_time(bench: Bench) -> None:
    hashes = tuple(uuid4().bytes for _ in range(50))
    await bench.turn_on(codes=CodeSet(b"salt", (8, 1, 1), hashes, NOW))
    for number, code_hash in enumerate(hashes, 1):
        left = await asyncio.gather(*(bench.use_backup_code(code_hash) for _ in range(AT_ONCE)))
        assert [count for count in left if count is not None] == [50 - number]
    assert await bench.use_backup_code(b"another") is None


async def test_a_right_code_forgets_the_wrong_ones_and_is_nobodys_turn_after_more_of_them(bench: Bench) -> None:
    await bench.turn_on()
    async with bench.database.transaction() as connection:
        factors = SecondFactors(connection)
        assert [await factors.count_wrong(bench.user_id, at=NOW) for _ in range(3)] == [1, 2, 3]
    assert not await bench.use_step(11, wrong_max=2)
    assert await bench.use_step(11, wrong_max=3)
    factor = await bench.factor()
    assert (factor.wrong_codes, factor.last_wrong_at, factor.last_step) == (0, None, 11)


async def test_what_is_pending_accepts_nothing_and_another_enrolment_is_another_factor(bench: Bench) -> None:
    async with bench.database.transaction() as connection:
        await SecondFactors(connection).begin(bench.user_id, bench.factor_id, "v1.k.x", at=NOW)
    assert not await bench.use_step(11)
    async with bench.database.transaction() as connection:
        factors = SecondFactors(connection)
        await factors.begin(bench.user_id, uuid4(), "v1.k.y", at=NOW)
        assert not await factors.enable(bench.user_id, bench.factor_id, step=11, at=NOW)
    assert not (await bench.factor()).is_on


async def test_a_set_of_codes_costs_one_hash_a_try() -> None:
    hasher = Hasher(Argon2Cost(memory_kib=8, passes=1, lanes=1), threads=1, waiting_max=1)
    try:
        hashes = await hasher.derive(["AAAA0000", "BBBB0000"], salt=b"0123456789abcdef", cost=hasher.cost)
        [again] = await hasher.derive(["BBBB0000"], salt=b"0123456789abcdef", cost=hasher.cost)
        [other] = await hasher.derive(["BBBB0000"], salt=b"another salt here", cost=hasher.cost)
    finally:
        hasher.close()
    assert hashes[1] == again
    assert other not in hashes
    assert {len(one) for one in hashes} == {32}


async def test_secrets_come_under_the_key_in_force_while_the_service_runs(
    bench: Bench, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    write_keys(path)
    keys = read_keys(path)
    bench.secrets = TwoFactorSecrets(keys)
    await owner.execute("DELETE FROM second_factors")
    await bench.turn_on()
    before = await bench.factor()

    async def seal_anew() -> int:
        async with bench.database.connection() as connection:
            return await bench.secrets.seal_anew(connection, rows_max=100)

    assert await seal_anew() == 0
    async with owner.transaction():  # where nothing was to be done, no transaction is left open
        await owner.execute("LOCK TABLE second_factors IN ACCESS EXCLUSIVE MODE NOWAIT")
    fresh = rotate(path, "two-factor", lead_s=0)
    assert keys.reload()
    assert bench.secrets.open(bench.user_id, before.secret_sealed) == SECRET  # older keys open
    assert await seal_anew() == 1
    after = await bench.factor()
    assert after.secret_sealed.split(".")[1] == fresh.kid != before.secret_sealed.split(".")[1]
    retire(path, "two-factor", before.secret_sealed.split(".")[1])
    assert keys.reload()
    assert bench.secrets.open(bench.user_id, after.secret_sealed) == SECRET
    assert await seal_anew() == 0
    assert await bench.use_step(11)  # nothing else of it has changed
    await owner.execute("UPDATE second_factors SET secret = 'v1.gone.x' WHERE user_id = $1", bench.user_id)
    assert await seal_anew() == 0  # its key is gone: left as it is


async def clear(database: Database) -> None:
    for statement in _CLEARING.split(";"):
        await _clear(database, statement)


def a_challenge(bench: Bench, token_hash: bytes, *, expires_in: timedelta) -> Challenge:
    return Challenge(
        hash=token_hash, user_id=bench.user_id, password_mark=b"m", remember_me=True, expires_at=NOW + expires_in
    )


async def test_challenges_are_bounded_and_cleared_away(bench: Bench, owner: asyncpg.Connection) -> None:
    async with bench.database.transaction() as connection:
        factors = SecondFactors(connection)
        opened = [
            a_challenge(bench, uuid4().bytes, expires_in=timedelta(minutes=5)) for _ in range(CHALLENGES_MAX + 10)
        ]
        for number, challenge in enumerate(opened):
            await factors.open_challenge(challenge, at=NOW + timedelta(seconds=number))
        assert await challenge_of(connection, opened[-1].hash) == opened[-1]
        assert await challenge_of(connection, opened[0].hash) is None
    count = "SELECT count(*) FROM login_challenges WHERE user_id = $1"
    assert await owner.fetchval(count, bench.user_id) == CHALLENGES_MAX
    await owner.execute("UPDATE login_challenges SET expires_at = now() WHERE user_id = $1", bench.user_id)
    await clear(bench.database)
    assert await owner.fetchval(count, bench.user_id) == CHALLENGES_MAX  # for an hour it is told that they are over
    await owner.execute(
        "UPDATE login_challenges SET expires_at = now() - interval '61 minutes' WHERE user_id = $1", bench.user_id
    )
    await clear(bench.database)
    assert await owner.fetchval(count, bench.user_id) == 0


async def test_wiping_leaves_nothing_and_no_session_counts_as_opened_by_it(
    bench: Bench, owner: asyncpg.Connection
) -> None:
    await bench.turn_on()
    await owner.execute(
        "INSERT INTO user_sessions (id, user_id, refresh_token_hash, amr, auth_time, expires_at, created_at, "
        "last_active_at) VALUES ($1, $2, 'x', '{pwd,otp}', now(), now() + interval '1 day', now(), now())",
        uuid4(), bench.user_id,
    )  # fmt: skip
    async with bench.database.transaction() as connection:
        factors = SecondFactors(connection)
        await factors.open_challenge(a_challenge(bench, uuid4().bytes, expires_in=timedelta(minutes=5)), at=NOW)
        await factors.wipe(bench.user_id)
    for table in ("second_factors", "login_challenges"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = $1", bench.user_id) == 0
    assert await owner.fetchval("SELECT amr FROM user_sessions WHERE user_id = $1", bench.user_id) == ["pwd"]
