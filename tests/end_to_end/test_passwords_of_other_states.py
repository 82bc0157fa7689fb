"""A password's life where something stands beside it: a second factor, a suspension, a hash from elsewhere, a list."""

import asyncio
import base64
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import bcrypt
import pytest
from argon2 import PasswordHasher

from adapters.mail_sink import token_of
from tests.authenticator import enrolled
from tests.gateway import PASSWORD, Gateway, Reply, database, gateway, new_email, registration, stored_events
from tests.program import Dev, eventually

NEW = "Difference_Engine#1822"
OTHER = "Jacquard+Loom=1804"


async def _reset_token(client: Gateway, email: str) -> str:
    assert (await client.call("auth.forgot-password", email=email)).data == {}
    return str(token_of(await client.mail_to(email, "/reset-password")))


async def _reset(client: Gateway, token: str, password: str = NEW, *, headers: dict[str, str] | None = None) -> Reply:
    return await client.call("auth.reset-password", headers=headers, token=token, newPassword=password)


async def _change(client: Gateway, access: str, current: str, new: str, **more: Any) -> Reply:  # noqa: ANN401 - the fields of a body
    return await client.call("me.change-password", access=access, currentPassword=current, newPassword=new, **more)


async def test_a_reset_never_steps_around_the_second_factor(client: Gateway) -> None:
    app = await enrolled(client)
    assert (await _reset(client, await _reset_token(client, app.email))).ok
    reply = await client.call("auth.login", email=app.email, password=NEW)
    assert "tokens" not in reply.data or reply.data["tokens"] is None
    challenge = reply.data["challengeToken"]
    wrong = await client.call("auth.two-factor", challengeToken=challenge, code=app.wrong_code())
    assert wrong.code == "INVALID_TWO_FACTOR_CODE"
    right = await client.call("auth.two-factor", challengeToken=challenge, code=await app.fresh_code())
    assert right.data["user"]["twoFactorEnabled"] is True


async def test_a_challenge_of_the_old_password_opens_nothing_after_a_reset(client: Gateway) -> None:
    app = await enrolled(client)
    challenge = await app.challenge()
    assert (await _reset(client, await _reset_token(client, app.email))).ok
    reply = await client.call("auth.two-factor", challengeToken=challenge, code=await app.fresh_code())
    assert reply.code == "INVALID_TOKEN"


async def test_a_change_asks_for_the_code_as_well(client: Gateway) -> None:
    app = await enrolled(client)
    assert (await _change(client, app.access, PASSWORD, NEW)).code == "VALIDATION_ERROR"
    assert (await _change(client, app.access, OTHER, NEW)).code == "INVALID_CREDENTIALS"
    wrong = await _change(client, app.access, PASSWORD, NEW, code=app.wrong_code())
    assert wrong.code == "INVALID_TWO_FACTOR_CODE"
    weak = await _change(client, app.access, PASSWORD, "short", code=(code := await app.fresh_code()))
    assert weak.code == "PASSWORD_POLICY_VIOLATION"
    assert (await _change(client, app.access, PASSWORD, NEW, code=code)).ok, "a refused act burns no code"
    backup = app.backup_codes[0]
    assert (await _change(client, app.access, NEW, OTHER, backupCode=backup)).ok
    again = await _change(client, app.access, OTHER, "Bernoulli%Numbers.7", backupCode=backup)
    assert again.code == "INVALID_TWO_FACTOR_CODE"


async def test_an_age_is_told_only_after_the_code(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    async with database(dev.ready) as rows:
        await rows.execute(
            "UPDATE users SET last_password_change = now() - interval '91 days' WHERE id = $1", app.user_id
        )
    assert (await app.show(code=app.wrong_code())).code == "INVALID_TWO_FACTOR_CODE"
    assert (await app.show(code=await app.fresh_code())).code == "PASSWORD_EXPIRED"
    changed = await _change(client, app.access, PASSWORD, NEW, code=await app.fresh_code())
    assert changed.ok, "a session that lives may renew it"


async def test_a_disowned_password_is_no_proof_for_a_new_one(dev: Dev, client: Gateway) -> None:
    session = await client.signed_in()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET password_reset_required = true WHERE id = $1", UUID(session["user"]["id"]))
    reply = await _change(client, session["tokens"]["accessToken"], PASSWORD, NEW)
    assert reply.code == "PASSWORD_RESET_REQUIRED"


@pytest.mark.parametrize("status", ["suspended", "deleted"])
async def test_a_link_of_an_account_that_is_shut_resets_nothing(dev: Dev, client: Gateway, status: str) -> None:
    email = await client.verified()
    token = await _reset_token(client, email)
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET status = $2 WHERE email = $1", email, status)
        for password in ("short", NEW):
            assert (await _reset(client, token, password)).code == "INVALID_TOKEN"
        asked = await client.call("auth.forgot-password", email=email)
        assert asked.data == {}
        await rows.execute("UPDATE users SET status = 'active' WHERE email = $1", email)
    assert (await _reset(client, token)).ok, "it was not used up"
    assert len(client.mails_to(email, "/reset-password")) == 1


async def test_whoever_asks_is_written_down_alike(dev: Dev, client: Gateway) -> None:
    known, unknown = await client.verified(), new_email()
    async with database(dev.ready) as rows:
        for address in (known, unknown):
            before = await rows.fetchval("SELECT count(*) FROM audit_logs WHERE action = 'password_reset_asked'")
            await client.call("auth.forgot-password", email=address)
            after = await rows.fetchval("SELECT count(*) FROM audit_logs WHERE action = 'password_reset_asked'")
            assert after - before == 1


async def test_a_link_for_another_purpose_or_address_resets_nothing(dev: Dev, client: Gateway) -> None:
    email = new_email()
    await client.register(email)
    verification = token_of(await client.mail_to(email, "verify-email"))
    assert (await _reset(client, str(verification))).code == "INVALID_TOKEN"
    token = await _reset_token(client, email)
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE links SET address = 'x' || address WHERE address = $1 AND purpose = 'reset'", email)
    assert (await _reset(client, token)).code == "INVALID_TOKEN"


async def test_a_reset_and_a_change_are_told_of(dev: Dev, client: Gateway) -> None:
    email = new_email()
    user_id = (await client.register(email)).data["user"]["id"]
    assert (await _reset(client, await _reset_token(client, email))).ok
    access = (await client.call("auth.login", email=email, password=NEW)).data["tokens"]["accessToken"]
    assert (await client.call("auth.login", email=email, password=NEW)).ok
    assert (await _change(client, access, NEW, OTHER)).ok

    async def told() -> bool:
        found = await stored_events(dev.ready, f"users.events.v1.*.{user_id}")
        seen = [(event["type"], event["data"].get("reason")) for event in found]
        return {
            ("PasswordResetRequested", None), ("PasswordReset", None), ("EmailVerified", "reset"),
            ("PasswordChanged", None), ("SessionRevoked", "password_changed"),
        } <= set(seen)  # fmt: skip

    await eventually(told, within_s=10, what="the events")
    found = await stored_events(dev.ready, f"users.events.v1.*.{user_id}")
    assert not any(NEW in str(event) or OTHER in str(event) or "argon2" in str(event) for event in found)


async def test_a_reset_that_is_sent_again_is_answered_again(client: Gateway) -> None:
    email = await client.verified()
    token, headers = await _reset_token(client, email), {"Idempotency-Key": f"reset-{new_email()}"}
    first, second = [await _reset(client, token, headers=headers) for _ in range(2)]
    assert first.data == second.data == {}
    assert second.headers["Idempotent-Replayed"] == "true"
    assert (await _reset(client, token)).code == "INVALID_TOKEN"


async def test_of_twenty_changes_at_once_one_is_made(dev: Dev, client: Gateway) -> None:
    """Each with the same current password; and the last five are kept whatever comes at once."""
    session = await client.signed_in()
    access, current = session["tokens"]["accessToken"], PASSWORD
    for number in range(10):
        wanted = [f"Loom-Card-{number}-{caller}-Weaves!" for caller in range(20)]
        replies = await asyncio.gather(*(_change(client, access, current, password) for password in wanted))
        codes = Counter(reply.code for reply in replies)
        assert codes["OK"] == 1
        assert codes.keys() <= {"OK", "INVALID_CREDENTIALS"}, codes
        (current,) = [password for password, reply in zip(wanted, replies, strict=True) if reply.ok]
    async with database(dev.ready) as rows:
        kept = await rows.fetchval(
            "SELECT count(*) FROM password_history WHERE user_id = $1", UUID(session["user"]["id"])
        )
    assert kept == 4


DECOMPOSED = unicodedata.normalize("NFD", "Grüße-aus-Köln-2026!")
LONG = "Analytical-Engine-" * 6 + "1843"


def _pbkdf2(password: str) -> str:
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 1000)
    return f"pbkdf2_sha256$1000$salt${base64.b64encode(digest).decode()}"


def _scrypt(password: str) -> str:
    digest = hashlib.scrypt(password.encode(), salt=b"salt", n=1024, r=8, p=1, dklen=64)
    return f"scrypt$1024$salt$8$1${base64.b64encode(digest).decode()}"


def _bcrypt(password: str) -> str:
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()


def _argon2(password: str) -> str:
    return PasswordHasher(time_cost=3, memory_cost=512, parallelism=2).hash(password)


FROM_ELSEWHERE: dict[str, tuple[Callable[[str], str], str]] = {
    "argon2id of other costs": (_argon2, PASSWORD),
    "Django's argon2": (lambda password: "argon2" + _argon2(password), PASSWORD),
    "bcrypt": (_bcrypt, PASSWORD),
    "bcrypt of more than 72 bytes": (_bcrypt, LONG),
    "PBKDF2": (_pbkdf2, PASSWORD),
    "scrypt": (_scrypt, PASSWORD),
    "of a password that was never normalised": (_pbkdf2, DECOMPOSED),
}


@pytest.mark.parametrize("kind", FROM_ELSEWHERE)
async def test_a_hash_from_elsewhere_is_upgraded_at_a_sign_in(dev: Dev, client: Gateway, kind: str) -> None:
    make, password = FROM_ELSEWHERE[kind]
    email = await client.verified()

    async def sign_in(typed: str) -> Reply:
        return await client.call("auth.login", email=email, password=typed)

    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET password_hash = $2 WHERE email = $1", email, make(password))
        assert (await sign_in("Wrong-Engine-1843")).code == "INVALID_CREDENTIALS"
        assert (await sign_in(password)).ok
        stored = await rows.fetchval("SELECT password_hash FROM users WHERE email = $1", email)
        assert stored.startswith("$argon2id$v=19$m=1024,t=1,p=1$")
    assert (await sign_in(password)).ok
    assert (await sign_in(unicodedata.normalize("NFC", password))).ok
    assert (await sign_in(password + "x")).code == "INVALID_CREDENTIALS", "what bcrypt cut off counts from here"


@pytest.mark.parametrize(
    "stored", ["!", "", "x" * 200, "$argon2id$v=19$m=1048576,t=9,p=99999$c29tZXNhbHRzb21lc2FsdA$" + "A" * 43]
)
async def test_a_hash_that_cannot_be_run_matches_nothing(dev: Dev, client: Gateway, stored: str) -> None:
    email = await client.verified()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET password_hash = $2 WHERE email = $1", email, stored)
    async with asyncio.timeout(5):
        for typed in (PASSWORD, stored or "x"):
            assert (await client.call("auth.login", email=email, password=typed)).code == "INVALID_CREDENTIALS"
    assert (await _reset(client, await _reset_token(client, email))).ok
    assert (await client.call("auth.login", email=email, password=NEW)).ok


async def test_the_nist_profile_and_an_operators_own_list(tmp_path: Path) -> None:
    listed = "Babbage and his sons 1871"
    lines = sorted(hashlib.sha1(word.encode()).hexdigest().upper() for word in (listed, "a", "b", "c"))
    (tmp_path / "breached.txt").write_text("".join(f"{line}:3\n" for line in lines))
    wanted = {
        "USER_SERVICE_PASSWORD_POLICY": "nist",
        "USER_SERVICE_BREACHED_PASSWORDS_FILE": str(tmp_path / "breached.txt"),
    }
    async with Dev(tmp_path / "data", **wanted) as dev, gateway(dev.ready) as client:

        async def register(password: str) -> list[str]:
            reply = await client.call("auth.register", **registration(new_email()) | {"password": password})
            return [] if reply.ok else [fault["code"] for fault in reply.body["error"]["details"]]

        assert await register("Xk9$mQ2p!rT4vw") == ["too_short"]
        assert await register("correct horse battery staple") == []
        assert await register("ada lovelace was here") == ["holds_own_data"]
        assert await register(listed) == ["breached"]
        checked = (await client.call("auth.check-password", password=listed)).data
        assert [violation["code"] for violation in checked["violations"]] == ["breached"]
        session = await client.signed_in()
        email, access = session["user"]["email"], session["tokens"]["accessToken"]
        changed = await _change(client, access, PASSWORD, listed)
        assert [fault["code"] for fault in changed.body["error"]["details"]] == ["breached"]
        assert (await _change(client, access, PASSWORD, "correct horse battery staple")).ok
        async with database(dev.ready) as rows:
            await rows.execute("UPDATE users SET last_password_change = now() - interval '9 years'")
        assert (await client.call("auth.login", email=email, password="correct horse battery staple")).ok
