"""Codes shown by many at once: fifty times twenty callers, and each time one of them gets in."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence

from tests.authenticator import Authenticator, enrolled
from tests.gateway import PASSWORD, Gateway, Reply, database
from tests.program import RACE_ROUNDS, Dev

ROUNDS, CALLERS = RACE_ROUNDS, 20


async def codes_of(calls: Sequence[Awaitable[Reply]]) -> Counter[str]:
    return Counter(reply.code for reply in await asyncio.gather(*calls))


async def challenges(app: Authenticator) -> list[str]:
    return list(await asyncio.gather(*(app.challenge() for _ in range(CALLERS))))


async def test_of_one_totp_code_one_sign_in_comes(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    for _ in range(ROUNDS):
        tokens = await challenges(app)
        code = await app.fresh_code()
        calls = [client.call("auth.two-factor", challengeToken=token, code=code) for token in tokens]
        assert await codes_of(calls) == {"OK": 1, "INVALID_TWO_FACTOR_CODE": CALLERS - 1}
    async with database(dev.ready) as rows:
        stored = await rows.fetchval(
            "SELECT count(*) FROM events WHERE aggregate_id = $1 AND type = 'UserLogin' "
            "AND data->>'method' = 'password+totp'",
            app.user_id,
        )
    assert stored == ROUNDS


async def test_of_one_backup_code_one_sign_in_comes(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    for number in range(ROUNDS):
        if not app.backup_codes:
            app.tokens = (await app.show(code=await app.fresh_code())).data["tokens"]  # the cap has ended the old one
            fresh = await client.call(
                "two-factor.backup-codes.regenerate", access=app.access, password=PASSWORD,
                code=await app.fresh_code(),
            )  # fmt: skip
            app.backup_codes = fresh.data["backupCodes"]
        tokens, code = await challenges(app), app.backup_codes.pop()
        calls = [client.call("auth.two-factor", challengeToken=token, backupCode=code) for token in tokens]
        assert await codes_of(calls) == {"OK": 1, "INVALID_TWO_FACTOR_CODE": CALLERS - 1}, number
    async with database(dev.ready) as rows:
        remaining = await rows.fetch(
            "SELECT data->>'remaining' AS left FROM events WHERE aggregate_id = $1 AND type = 'BackupCodeUsed' "
            "ORDER BY version",
            app.user_id,
        )
    assert [int(row["left"]) for row in remaining] == [*range(9, -1, -1)] * (ROUNDS // 10)


async def test_of_one_challenge_one_sign_in_comes(client: Gateway) -> None:
    app = await enrolled(client)
    for _ in range(ROUNDS):
        token, code = await app.challenge(), await app.fresh_code()
        calls = [client.call("auth.two-factor", challengeToken=token, code=code) for _ in range(CALLERS)]
        assert await codes_of(calls) == {"OK": 1, "INVALID_TOKEN": CALLERS - 1}


async def test_a_challenge_takes_five_wrong_codes_however_many_come(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    for _ in range(ROUNDS):
        token = await app.challenge()
        calls = [client.call("auth.two-factor", challengeToken=token, code=app.wrong_code()) for _ in range(CALLERS)]
        assert await codes_of(calls) == {"INVALID_TWO_FACTOR_CODE": 5, "INVALID_TOKEN": CALLERS - 5}
    async with database(dev.ready) as rows:
        counted = await rows.fetchval("SELECT wrong_codes FROM second_factors WHERE user_id = $1", app.user_id)
    assert counted == ROUNDS * 5


async def test_of_one_first_code_the_factor_is_turned_on_once(dev: Dev, client: Gateway) -> None:
    account = await client.signed_in()
    access, app = account["tokens"]["accessToken"], Authenticator(client, account, secret="")
    for _ in range(ROUNDS):
        app.secret = (await client.call("two-factor.enable", access=access, password=PASSWORD)).data["secret"]
        code = app.code()
        on = [client.call("two-factor.verify", access=access, code=code) for _ in range(CALLERS)]
        assert await codes_of(on) == {"OK": 1, "CONFLICT": CALLERS - 1}
        code = await app.fresh_code()
        off = [client.call("two-factor.disable", access=access, password=PASSWORD, code=code) for _ in range(CALLERS)]
        assert (await codes_of(off))["OK"] == 1
    async with database(dev.ready) as rows:
        stored = await rows.fetch(
            "SELECT type, count(*) AS n FROM events WHERE aggregate_id = $1 AND type LIKE 'TwoFactor%' GROUP BY type",
            app.user_id,
        )
    assert {row["type"]: row["n"] for row in stored} == {"TwoFactorEnabled": ROUNDS, "TwoFactorDisabled": ROUNDS}


async def test_of_one_code_one_act_is_done(client: Gateway) -> None:
    """Acts of a session that ask for a code: the code is used up with the act, and what comes second is refused."""
    app = await enrolled(client)
    for _ in range(ROUNDS):
        code = await app.fresh_code()
        calls = [
            client.call("two-factor.backup-codes.regenerate", access=app.access, password=PASSWORD, code=code)
            for _ in range(CALLERS)
        ]
        assert await codes_of(calls) == {"OK": 1, "INVALID_TWO_FACTOR_CODE": CALLERS - 1}
