"""A password's life as a gateway sees it: looked at, forgotten, reset, changed, aged, disowned."""

import asyncio
import secrets
import urllib.parse

import bcrypt
import pytest

from adapters.mail_sink import link_of, token_of
from adapters.tokens import hash_of
from tests.end_to_end.test_link_pages import fetch
from tests.gateway import PASSWORD, Gateway, Reply, database, new_email, registration
from tests.program import RACE_ROUNDS, Dev

OTHERS = [
    "Difference_Engine#1822", "Jacquard+Loom=1804", "Bernoulli%Numbers.7", "Note-G/of/the/Translator-1",
    "Babbage&Sons:1871",
]  # fmt: skip


async def _reset_token(client: Gateway, email: str) -> str:
    """The token of a new reset mail."""
    before = len(client.mails_to(email, "/reset-password"))
    assert (await client.call("auth.forgot-password", email=email)).data == {}
    async with asyncio.timeout(20):
        while len(mails := client.mails_to(email, "/reset-password")) <= before:
            await asyncio.sleep(0.02)
    return str(token_of(mails[-1]))


async def _login(client: Gateway, email: str, password: str) -> Reply:
    return await client.call("auth.login", email=email, password=password)


async def test_a_forgotten_password_is_set_anew_and_every_session_ends(client: Gateway) -> None:
    session = await client.signed_in()
    email, access = session["user"]["email"], session["tokens"]["accessToken"]
    older, token = await _reset_token(client, email), await _reset_token(client, email)
    weak = await client.call("auth.reset-password", token=token, newPassword="short")
    assert weak.code == "PASSWORD_POLICY_VIOLATION"
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])).data == {}
    assert (await client.call("me.get", access=access)).code == "INVALID_TOKEN"
    refreshed = await client.call("auth.refresh", refreshToken=session["tokens"]["refreshToken"])
    assert refreshed.code == "INVALID_TOKEN"
    assert (await _login(client, email, PASSWORD)).code == "INVALID_CREDENTIALS"
    assert (await _login(client, email, OTHERS[0])).ok
    for spent in (token, older):
        reply = await client.call("auth.reset-password", token=spent, newPassword=OTHERS[1])
        assert reply.code == "INVALID_TOKEN"
    await client.mail_to(email, "password")


async def test_a_reset_proves_the_mailbox(client: Gateway) -> None:
    email = new_email()
    await client.register(email)
    token = await _reset_token(client, email)
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])).ok
    assert (await _login(client, email, OTHERS[0])).data["user"]["emailVerified"] is True


async def test_nobody_is_told_who_has_an_account(client: Gateway) -> None:
    known = await client.call("auth.forgot-password", email=await client.verified())
    unknown = await client.call("auth.forgot-password", email=new_email())
    assert known.data == unknown.data == {}
    assert known.headers.keys() == unknown.headers.keys()


@pytest.mark.parametrize("token", ["x", "A" * 43, "' OR 1=1 --"])
async def test_a_made_up_token_resets_nothing(client: Gateway, token: str) -> None:
    reply = await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])
    assert reply.code == "INVALID_TOKEN"


async def test_a_reset_link_past_its_hour(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    token = await _reset_token(client, email)
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE links SET expires_at = now() WHERE address = $1 AND purpose = 'reset'", email)
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])).code == "TOKEN_EXPIRED"


async def test_one_reset_link_sets_one_password_however_many_come_at_once(dev: Dev, client: Gateway) -> None:
    """Many rounds of twenty callers on links that are opened again; each leaves one password."""
    email = await client.verified()
    token = await _reset_token(client, email)
    async with database(dev.ready) as rows:
        for number in range(RACE_ROUNDS):
            wanted = [f"Loom-Card-{number}-{caller}-Weaves!" for caller in range(20)]
            replies = await asyncio.gather(
                *(client.call("auth.reset-password", token=token, newPassword=password) for password in wanted)
            )
            assert sorted(reply.code for reply in replies) == ["INVALID_TOKEN"] * 19 + ["OK"]
            (winner,) = [password for password, reply in zip(wanted, replies, strict=True) if reply.ok]
            assert (await _login(client, email, winner)).ok
            await rows.execute("UPDATE links SET used_at = NULL WHERE address = $1 AND purpose = 'reset'", email)
            await rows.execute("DELETE FROM password_history")


async def test_a_change_ends_the_other_sessions_and_voids_reset_links(client: Gateway) -> None:
    mine = await client.signed_in()
    email, access = mine["user"]["email"], mine["tokens"]["accessToken"]
    other = (await _login(client, email, PASSWORD)).data["tokens"]["accessToken"]
    token = await _reset_token(client, email)

    async def change(current: str) -> Reply:
        return await client.call("me.change-password", access=access, currentPassword=current, newPassword=OTHERS[0])

    assert (await change(OTHERS[1])).code == "INVALID_CREDENTIALS"
    assert (await change(PASSWORD)).data == {}
    assert (await client.call("me.get", access=access)).ok
    assert (await client.call("me.get", access=other)).code == "INVALID_TOKEN"
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[2])).code == "INVALID_TOKEN"
    assert (await _login(client, email, OTHERS[0])).ok


async def test_the_last_five_passwords_are_not_taken_again(client: Gateway) -> None:
    session = await client.signed_in()
    access, had = session["tokens"]["accessToken"], [PASSWORD]

    async def change(new: str) -> Reply:
        return await client.call("me.change-password", access=access, currentPassword=had[-1], newPassword=new)

    for new in OTHERS[:4]:
        assert (await change(new)).ok
        had.append(new)
    for old in had:
        reply = await change(old)
        assert [fault["code"] for fault in reply.body["error"]["details"]] == ["used_before"]
    assert (await change(OTHERS[4])).ok
    had.append(OTHERS[4])
    assert (await change(PASSWORD)).ok


async def test_an_old_password_opens_nothing_until_it_is_reset(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET last_password_change = now() - interval '90 days' WHERE email = $1", email)
    assert (await _login(client, email, OTHERS[0])).code == "INVALID_CREDENTIALS"
    assert (await _login(client, email, PASSWORD)).code == "PASSWORD_EXPIRED"
    token = await _reset_token(client, email)
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])).ok
    assert (await _login(client, email, OTHERS[0])).ok


async def test_a_disowned_password_opens_nothing_until_it_is_reset(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET password_reset_required = true WHERE email = $1", email)
    assert (await _login(client, email, PASSWORD)).code == "PASSWORD_RESET_REQUIRED"
    token = await _reset_token(client, email)
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])).ok
    assert (await _login(client, email, OTHERS[0])).ok


async def test_a_bcrypt_hash_from_elsewhere_becomes_argon2id_at_a_sign_in(dev: Dev, client: Gateway) -> None:
    email = await client.verified()
    async with database(dev.ready) as rows:
        found = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        await rows.execute("UPDATE users SET password_hash = $2 WHERE email = $1", email, found)
        assert (await _login(client, email, "Wrong-Engine-1843")).code == "INVALID_CREDENTIALS"
        for _ in range(2):
            assert (await _login(client, email, PASSWORD)).ok
        stored = await rows.fetchval("SELECT password_hash FROM users WHERE email = $1", email)
    assert stored.startswith("$argon2id$")


async def test_a_gateway_can_show_how_good_a_password_is(client: Gateway) -> None:
    weak = (await client.call("auth.check-password", password="Password1!", email="ada@example.org")).data
    assert (weak["acceptable"], weak["score"] < 2) == (False, True)
    assert {violation["code"] for violation in weak["violations"]} == {"too_common"}
    assert weak["suggestions"]
    good = (await client.call("auth.check-password", password=PASSWORD)).data
    assert good == {"acceptable": True, "score": 4, "violations": [], "suggestions": []}
    own = (await client.call("auth.check-password", password="Xy7!L0velaceQ", lastName="Lovelace")).data
    assert {violation["code"] for violation in own["violations"]} == {"holds_own_data"}


async def test_registration_asks_for_the_same(client: Gateway) -> None:
    reply = await client.call("auth.register", **registration(new_email()) | {"password": "Xy7!LovelaceQ"})
    assert [fault["code"] for fault in reply.body["error"]["details"]] == ["holds_own_data"]


async def test_the_page_behind_the_mail_sets_a_password(client: Gateway) -> None:
    email = await client.verified()
    await client.call("auth.forgot-password", email=email)
    link = link_of(await client.mail_to(email, "/reset-password"))
    assert link is not None
    status, page, _ = await fetch(link)
    assert (status, 'type="password"' in page) == (200, True)
    address, _, query = link.partition("?")
    token = urllib.parse.parse_qs(query)["token"][0]
    status, page, _ = await fetch(address, {"token": token, "password": "short"})
    assert (status, "at least 8" in page, token in page) == (400, True, True)
    status, page, _ = await fetch(address, {"token": token, "password": OTHERS[0]})
    assert (status, OTHERS[0] in page) == (200, False)
    assert (await _login(client, email, OTHERS[0])).ok


async def test_a_reset_forgets_every_device_but_the_one_it_came_from(client: Gateway) -> None:
    email = await client.verified()
    mine, theirs = [(await _login(client, email, PASSWORD)).data["tokens"]["deviceToken"] for _ in range(2)]
    token = await _reset_token(client, email)
    done = await client.call("auth.reset-password", token=token, newPassword=OTHERS[0], headers={"Device-Token": mine})
    assert done.ok
    for device, is_known in ((mine, True), (theirs, False)):
        reply = await client.call("auth.login", email=email, password=OTHERS[0], headers={"Device-Token": device})
        assert (reply.data["tokens"]["deviceToken"] is None) == is_known


async def test_an_unlock_link_dies_with_the_password(dev: Dev, client: Gateway) -> None:
    email, unlock = await client.verified(), secrets.token_urlsafe(32)
    async with database(dev.ready) as rows:
        link_id = await rows.fetchval(
            "INSERT INTO links (id, user_id, purpose, address, created_at, expires_at) "
            "SELECT gen_random_uuid(), id, 'unlock', email, now(), now() + interval '1 hour' FROM users "
            "WHERE email = $1 RETURNING id", email,
        )  # fmt: skip
        await rows.execute("INSERT INTO link_tokens (hash, link_id) VALUES ($1, $2)", hash_of(unlock), link_id)
    token = await _reset_token(client, email)
    assert (await client.call("auth.reset-password", token=token, newPassword=OTHERS[0])).ok
    assert (await client.call("auth.unlock", token=unlock)).code == "INVALID_TOKEN"
