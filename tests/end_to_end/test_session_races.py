"""Sessions and mail links under many callers at once: fifty rounds of twenty each where the effect is to be one."""

import asyncio
from uuid import UUID

from adapters.tokens import hash_of
from tests.end_to_end.test_sessions import claims_of, sign_in, token_in_mail
from tests.gateway import PASSWORD, Gateway, database, new_email
from tests.program import RACE_ROUNDS, Dev


async def test_twenty_sign_ins_at_once_never_leave_more_than_the_cap(dev: Dev, client: Gateway) -> None:
    """Many rounds of twenty callers."""
    email = await client.verified()
    async with database(dev.ready) as rows:
        for _ in range(RACE_ROUNDS):
            replies = await asyncio.gather(
                *(client.call("auth.login", email=email, password=PASSWORD) for _ in range(20))
            )
            assert {reply.code for reply in replies} <= {"OK", "OVERLOADED"}
            live = await rows.fetchval(
                "SELECT count(*) FROM user_sessions s JOIN users u ON u.id = s.user_id "
                "WHERE u.email = $1 AND s.ended_at IS NULL", email,
            )  # fmt: skip
            assert live == 10


async def test_a_refresh_token_used_by_many_at_once_has_one_successor(client: Gateway) -> None:
    """Many rounds of twenty callers: one family, and one next token."""
    tokens = (await client.signed_in())["tokens"]
    for _ in range(RACE_ROUNDS):
        replies = await asyncio.gather(
            *(client.call("auth.refresh", refreshToken=tokens["refreshToken"]) for _ in range(20))
        )
        assert {reply.code for reply in replies} == {"OK"}
        assert len({reply.data["tokens"]["refreshToken"] for reply in replies}) == 1
        tokens = replies[0].data["tokens"]


async def test_a_reused_refresh_token_ends_the_family_once(dev: Dev, client: Gateway) -> None:
    """Many rounds of twenty thieves."""
    email = await client.verified()
    for _ in range(RACE_ROUNDS):
        first = await sign_in(client, email)
        second = (await client.call("auth.refresh", refreshToken=first["refreshToken"])).data["tokens"]
        assert (await client.call("auth.refresh", refreshToken=second["refreshToken"])).ok
        replies = await asyncio.gather(
            *(client.call("auth.refresh", refreshToken=first["refreshToken"]) for _ in range(20))
        )
        assert {reply.code for reply in replies} == {"INVALID_TOKEN"}
    async with database(dev.ready) as rows:
        told = await rows.fetchval(
            "SELECT count(*) FROM events WHERE type = 'RefreshTokenReused' AND aggregate_id = "
            "(SELECT id FROM users WHERE email = $1)", email,
        )  # fmt: skip
    assert told == RACE_ROUNDS


async def test_a_verification_link_used_by_many_at_once_verifies_once(dev: Dev, client: Gateway) -> None:
    """Many rounds of twenty callers on a link that is opened again."""
    email = new_email()
    await client.register(email)
    token = await token_in_mail(client, email, "/verify-email?")
    async with database(dev.ready) as rows:
        for _ in range(RACE_ROUNDS):
            replies = await asyncio.gather(*(client.call("auth.verify-email", token=token) for _ in range(20)))
            assert sorted(reply.code for reply in replies) == ["INVALID_TOKEN"] * 19 + ["OK"]
            await rows.execute("UPDATE links SET used_at = NULL WHERE address = $1 AND purpose = 'verification'", email)
        verified = await rows.fetchval(
            "SELECT count(*) FROM events WHERE type = 'EmailVerified' AND aggregate_id = "
            "(SELECT id FROM users WHERE email = $1)", email,
        )  # fmt: skip
    assert verified == 1


async def test_twenty_proofs_at_once_leave_one_live_refresh_token(dev: Dev, client: Gateway) -> None:
    tokens = (await client.signed_in())["tokens"]
    access = tokens["accessToken"]
    replies = await asyncio.gather(
        *(client.call("me.reauthenticate", access=access, password=PASSWORD) for _ in range(20))
    )
    assert {reply.code for reply in replies} <= {"OK", "OVERLOADED"}
    session_id = UUID((await claims_of(client, access))["sid"])
    async with database(dev.ready) as rows:
        unspent = await rows.fetch(
            "SELECT hash FROM refresh_tokens WHERE session_id = $1 AND used_at IS NULL", session_id
        )
    given = {hash_of(reply.data["tokens"]["refreshToken"]) for reply in replies if reply.ok}
    assert [row["hash"] in given for row in unspent] == [True]


async def test_a_link_that_disowns_is_good_once_whoever_comes_at_once(client: Gateway) -> None:
    email = await client.verified()
    await sign_in(client, email)
    await sign_in(client, email)
    token = await token_in_mail(client, email, "/not-me?", newest=2)
    replies = await asyncio.gather(*(client.call("auth.not-me", token=token) for _ in range(20)))
    assert sorted(reply.code for reply in replies) == ["INVALID_TOKEN"] * 19 + ["OK"]
    assert (await client.call("auth.not-me", token="A" * 43)).code == "INVALID_TOKEN"
