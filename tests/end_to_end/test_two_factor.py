"""The second factor through its life: turned on, shown at sign-in, replaced, turned off; and every way in which a code
is refused."""

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import jwt
import pytest

from tests.authenticator import Authenticator, enrolled
from tests.gateway import PASSWORD, Gateway, Reply, database, stored_events
from tests.program import Dev, eventually

WRONG = "Wrong-Password-1"


def claims(tokens: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(tokens["accessToken"], options={"verify_signature": False})
    return found


async def events_of(dev: Dev, user_id: UUID, *types: str) -> list[dict[str, Any]]:
    """What the store holds for a user, of these types, in order; announced or not."""
    async with database(dev.ready) as rows:
        found = await rows.fetch(
            "SELECT type, data FROM events WHERE aggregate_id = $1 AND type = ANY($2) ORDER BY version",
            user_id, list(types),
        )  # fmt: skip
    return [{"type": row["type"], **json.loads(row["data"])} for row in found]


async def audited(dev: Dev, user_id: UUID) -> list[str]:
    """The actions of a user's audit rows that have no event."""
    async with database(dev.ready) as rows:
        found = await rows.fetch(
            "SELECT action FROM audit_logs WHERE user_id = $1 AND event_id IS NULL ORDER BY position", user_id
        )
    return [row["action"] for row in found]


async def test_a_second_factor_from_its_first_code_to_its_last(dev: Dev, client: Gateway) -> None:
    account = await client.signed_in()
    access, email = account["tokens"]["accessToken"], account["user"]["email"]
    assert not account["user"]["twoFactorEnabled"]
    begun = (await client.call("two-factor.enable", access=access, password=PASSWORD)).data
    app = Authenticator(client, account, begun["secret"])
    assert re.fullmatch("[A-Z2-7]{32}", begun["secret"])
    uri = urlsplit(begun["otpauthUri"])
    assert (uri.scheme, uri.netloc, uri.path) == ("otpauth", "totp", f"/Project5:{email.replace('@', '%40')}")
    said = {"secret": [begun["secret"]], "issuer": ["Project5"]}
    assert said.items() <= parse_qs(uri.query).items()
    kind, _, picture = begun["qrCode"].partition(",")
    assert kind == "data:image/png;base64"
    assert b64decode(picture).startswith(b"\x89PNG")
    assert (await client.call("auth.login", email=email, password=PASSWORD)).data["user"]["id"] == str(app.user_id)

    codes = (await client.call("two-factor.verify", access=access, code=app.code())).data["backupCodes"]
    assert len(set(codes)) == 10
    assert all(re.fullmatch("[0-9A-F]{8}", code) for code in codes)
    assert (await client.call("me.get", access=access)).data["user"]["twoFactorEnabled"]
    refreshed = (await client.call("auth.refresh", refreshToken=account["tokens"]["refreshToken"])).data["tokens"]
    assert claims(refreshed)["amr"] == ["pwd", "otp"]  # the code was shown in this session

    login = await client.call("auth.login", email=email, password=PASSWORD)
    assert login.data.keys() == {"twoFactorRequired", "challengeToken", "expiresIn", "methods"}
    assert (login.data["twoFactorRequired"], login.data["expiresIn"]) == (True, 300)
    assert login.data["methods"] == ["totp", "backup-code"]
    shown = await client.call("auth.two-factor", challengeToken=login.data["challengeToken"], code=app.code(1))
    assert shown.data.keys() == {"user", "tokens"}
    assert claims(shown.data["tokens"])["amr"] == ["pwd", "otp"]
    assert (await client.call("me.get", access=shown.data["tokens"]["accessToken"])).ok
    again = await client.call(
        "auth.two-factor", challengeToken=login.data["challengeToken"], code=await app.fresh_code()
    )
    assert again.code == "INVALID_TOKEN"

    assert (await app.show(backupCode=codes[0].lower())).ok
    counted = (await client.call("two-factor.backup-codes", access=access)).data
    assert (counted["remaining"], counted.keys()) == (9, {"remaining", "generatedAt"})
    assert (await app.show(backupCode=codes[0])).code == "INVALID_TWO_FACTOR_CODE"
    fresh = await client.call(
        "two-factor.backup-codes.regenerate", access=access, password=PASSWORD, code=await app.fresh_code()
    )
    assert len(set(fresh.data["backupCodes"]) - set(codes)) == 10
    assert (await app.show(backupCode=codes[1])).code == "INVALID_TWO_FACTOR_CODE"
    off = await client.call(
        "two-factor.disable", access=access, password=PASSWORD, backupCode=fresh.data["backupCodes"][0]
    )
    assert off.data == {}
    last = (await client.call("auth.login", email=email, password=PASSWORD)).data
    assert last.keys() == {"user", "tokens"}
    assert claims(last["tokens"])["amr"] == ["pwd"]

    told = await events_of(
        dev, app.user_id, "TwoFactorEnabled", "BackupCodeUsed", "BackupCodesRegenerated", "TwoFactorDisabled"
    )
    assert [(one["type"], one.get("by"), one.get("remaining")) for one in told] == [
        ("TwoFactorEnabled", "user", None), ("BackupCodeUsed", None, 9), ("BackupCodesRegenerated", None, None),
        ("BackupCodeUsed", None, 9), ("TwoFactorDisabled", "user", None),
    ]  # fmt: skip
    methods = [one["method"] for one in await events_of(dev, app.user_id, "UserLogin")]
    assert methods == ["password", "password", "password+totp", "password+backup-code", "password"]
    async with database(dev.ready) as rows:
        assert not await rows.fetchval("SELECT true FROM second_factors WHERE user_id = $1", app.user_id)
        assert not await rows.fetchval("SELECT true FROM login_challenges WHERE user_id = $1", app.user_id)


async def test_a_pending_secret_is_replaced_and_one_that_is_on_is_not(client: Gateway) -> None:
    account = await client.signed_in()
    access = account["tokens"]["accessToken"]
    nothing = await client.call("two-factor.verify", access=access, code="123456")
    assert nothing.code == "CONFLICT"
    assert (await client.call("two-factor.enable", access=access, password=WRONG)).code == "INVALID_CREDENTIALS"
    first, second = [
        (await client.call("two-factor.enable", access=access, password=PASSWORD)).data["secret"] for _ in range(2)
    ]
    assert first != second
    old, app = Authenticator(client, account, first), Authenticator(client, account, second)
    assert (await client.call("two-factor.verify", access=access, code=old.code())).code == "INVALID_TWO_FACTOR_CODE"
    assert (await client.call("two-factor.backup-codes", access=access)).code == "NOT_FOUND"
    code = app.code()
    assert (await client.call("two-factor.verify", access=access, code=f" {code[:3]} {code[3:]}")).ok
    assert (await client.call("two-factor.enable", access=access, password=PASSWORD)).code == "CONFLICT"
    assert (await client.call("two-factor.verify", access=access, code=app.code(1))).code == "CONFLICT"
    assert (await app.show(code=code)).code == "INVALID_TWO_FACTOR_CODE"  # it has enrolled
    assert (await app.show(code=app.code(1))).ok


async def test_there_is_no_second_factor_before_the_address_is_verified(dev: Dev, client: Gateway) -> None:
    account = await client.signed_in()
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET email_verified = false WHERE id = $1", UUID(account["user"]["id"]))
    reply = await client.call("two-factor.enable", access=account["tokens"]["accessToken"], password=PASSWORD)
    assert reply.code == "EMAIL_NOT_VERIFIED"


async def test_a_challenge_says_what_may_be_shown(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE second_factors SET codes = '{}' WHERE user_id = $1", app.user_id)
    login = await client.call("auth.login", email=app.email, password=PASSWORD)
    assert login.data["methods"] == ["totp"]
    assert (await client.call("two-factor.backup-codes", access=app.access)).data["remaining"] == 0


async def test_what_is_off_can_be_neither_turned_off_nor_given_codes(client: Gateway) -> None:
    access = (await client.signed_in())["tokens"]["accessToken"]
    off = await client.call("two-factor.disable", access=access, password=PASSWORD)
    codes = await client.call("two-factor.backup-codes.regenerate", access=access, password=PASSWORD, code="123456")
    assert (off.code, codes.code) == ("CONFLICT", "CONFLICT")


@pytest.mark.parametrize(
    ("body", "fault"),
    [({}, ("code", "required")), ({"code": "123456", "backupCode": "01234567"}, ("backupCode", "one_only"))],
    ids=["none", "both"],
)
async def test_either_a_code_or_a_backup_code_is_shown(
    client: Gateway, body: dict[str, Any], fault: tuple[str, str]
) -> None:
    app = await enrolled(client)
    for reply in (
        await app.show(**body),
        await client.call("two-factor.disable", access=app.access, password=PASSWORD, **body),
    ):
        details = reply.body["error"]["details"]
        assert (reply.code, [(one["field"], one["code"]) for one in details]) == ("VALIDATION_ERROR", [fault])
    wrong = await client.call("two-factor.disable", access=app.access, password=WRONG, **body)
    assert wrong.code == "INVALID_CREDENTIALS"  # only the right password is told that a code is due


@pytest.mark.parametrize("code", ["12345", "1234567", "abcdef", "١٢٣٤٥٦", "\x00" * 6, "-12345", "😀"])
async def test_what_can_be_no_code_is_a_wrong_one(client: Gateway, code: str) -> None:
    app = await enrolled(client)
    assert (await app.show(code=code)).code == "INVALID_TWO_FACTOR_CODE"
    assert (await app.show(backupCode=code)).code == "INVALID_TWO_FACTOR_CODE"


async def test_a_challenge_is_spent_by_five_wrong_codes(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    challenge = await app.challenge()
    replies = [await client.call("auth.two-factor", challengeToken=challenge, code=app.wrong_code()) for _ in range(5)]
    assert [reply.code for reply in replies] == ["INVALID_TWO_FACTOR_CODE"] * 5
    late = await client.call("auth.two-factor", challengeToken=challenge, code=app.code())
    assert late.code == "INVALID_TOKEN"
    failed = await events_of(dev, app.user_id, "LoginFailed")
    assert [(one["failures"], one["wrongCodes"], one["reason"]) for one in failed] == [
        (count, count, "wrong_second_factor") for count in (1, 2, 3, 4)
    ]
    assert (await audited(dev, app.user_id)).count("two_factor_refused") == 5
    assert (await app.show(code=app.code())).ok
    async with database(dev.ready) as rows:
        left = await rows.fetchrow(
            "SELECT f.wrong_codes, u.failed_login_attempts FROM users u JOIN second_factors f ON f.user_id = u.id "
            "WHERE u.id = $1",
            app.user_id,
        )
    assert left is not None
    assert tuple(left) == (0, 0)


async def test_the_failure_counter_falls_after_the_last_factor_alone(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)

    async def failures() -> int:
        async with database(dev.ready) as rows:
            return int(await rows.fetchval("SELECT failed_login_attempts FROM users WHERE id = $1", app.user_id))

    assert (await client.call("auth.login", email=app.email, password=WRONG)).code == "INVALID_CREDENTIALS"
    challenge = await app.challenge()
    assert await failures() == 1
    assert not (await client.call("auth.two-factor", challengeToken=challenge, code=app.wrong_code())).ok
    assert await failures() == 2
    assert (await client.call("auth.two-factor", challengeToken=challenge, code=app.code())).ok
    assert await failures() == 0


async def test_a_challenge_is_no_other_token_and_no_other_token_is_a_challenge(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    challenge = await app.challenge()
    assert (await client.call("me.get", access=challenge)).code == "INVALID_TOKEN"
    assert (await client.call("auth.refresh", refreshToken=challenge)).code == "INVALID_TOKEN"
    for other in (app.access, str(app.tokens["refreshToken"]), str(app.tokens["deviceToken"]), challenge[:-1], "x"):
        assert (await client.call("auth.two-factor", challengeToken=other, code=app.code())).code == "INVALID_TOKEN"
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE login_challenges SET expires_at = now() WHERE user_id = $1", app.user_id)
    late = await client.call("auth.two-factor", challengeToken=challenge, code=app.code())
    assert late.code == "TOKEN_EXPIRED"


@pytest.mark.parametrize(
    "change",
    ["status = 'suspended'", "status = 'deleted'", "password_hash = 'another'", "two_factor_enabled = false"],
    ids=["suspended", "deleted", "another password", "turned off"],
)
async def test_a_challenge_ends_with_what_it_was_given_for(dev: Dev, client: Gateway, change: str) -> None:
    app = await enrolled(client)
    challenge = await app.challenge()
    async with database(dev.ready) as rows:
        await rows.execute(f"UPDATE users SET {change} WHERE id = $1", app.user_id)
    assert (await client.call("auth.two-factor", challengeToken=challenge, code=app.code())).code == "INVALID_TOKEN"


async def test_a_disowned_password_is_told_of_after_the_last_factor_alone(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    async with database(dev.ready) as rows:
        await rows.execute("UPDATE users SET password_reset_required = true WHERE id = $1", app.user_id)
    assert (await app.show(code=app.wrong_code())).code == "INVALID_TWO_FACTOR_CODE"
    code = app.code()
    assert (await app.show(code=code)).code == "PASSWORD_RESET_REQUIRED"
    assert (await app.show(code=code)).code == "INVALID_TWO_FACTOR_CODE"  # it is used up
    assert (await app.show(backupCode=app.backup_codes[0])).code == "PASSWORD_RESET_REQUIRED"
    assert [one["remaining"] for one in await events_of(dev, app.user_id, "BackupCodeUsed")] == [9]
    assert (await audited(dev, app.user_id)).count("login_refused") == 2


async def test_remember_me_is_remembered_to_the_second_step(client: Gateway) -> None:
    app = await enrolled(client)
    challenge = await app.challenge(remember=True)
    tokens = (await client.call("auth.two-factor", challengeToken=challenge, code=app.code())).data["tokens"]
    assert tokens["refreshExpiresIn"] == 30 * 86_400
    assert tokens["deviceToken"]


async def test_a_first_reply_is_given_again_while_what_it_holds_is_unused(client: Gateway) -> None:
    account = await client.signed_in()
    access, email = account["tokens"]["accessToken"], account["user"]["email"]

    async def twice(operation: str, key: str, **body: Any) -> tuple[Reply, Reply]:  # noqa: ANN401
        headers = {"Idempotency-Key": key}
        token = access if operation.startswith("two-factor") else None
        first, again = [await client.call(operation, access=token, headers=headers, **body) for _ in range(2)]
        return first, again

    keys = [uuid4().hex for _ in range(4)]
    begun, begun_again = await twice("two-factor.enable", keys[0], password=PASSWORD)
    assert begun.data == begun_again.data
    app = Authenticator(client, account, begun.data["secret"])
    code = app.code()
    on, on_again = await twice("two-factor.verify", keys[1], code=code)
    assert on.data == on_again.data
    login, login_again = await twice("auth.login", keys[2], email=email, password=PASSWORD)
    assert login.data == login_again.data
    challenge = login.data["challengeToken"]
    shown, shown_again = await twice("auth.two-factor", keys[3], challengeToken=challenge, code=app.code(1))
    assert shown.data == shown_again.data
    assert (await app.show(backupCode=on.data["backupCodes"][0])).ok
    for replies in (
        await twice("two-factor.enable", keys[0], password=PASSWORD),
        await twice("two-factor.verify", keys[1], code=code),
        await twice("auth.login", keys[2], email=email, password=PASSWORD),
    ):
        assert [reply.code for reply in replies] == ["CONFLICT"] * 2


async def test_the_stream_tells_of_a_second_factor_and_says_nothing_secret(dev: Dev, client: Gateway) -> None:
    app = await enrolled(client)
    shown = await app.show(backupCode=app.backup_codes[0])
    assert shown.ok

    async def announced() -> list[dict[str, Any]]:
        return await stored_events(dev.ready, f"users.events.v1.BackupCodeUsed.{app.user_id}")

    await eventually(announced, within_s=10, what="the event to be announced")
    told = json.dumps(await stored_events(dev.ready, f"users.events.v1.*.{app.user_id}"))
    assert "TwoFactorEnabled" in told
    assert not [secret for secret in (app.secret, *app.backup_codes) if secret in told]


async def test_a_failed_act_leaves_the_code_unused(dev: Dev, client: Gateway) -> None:
    """Two that show the same code at once for two acts: one is done, the other's is refused and stored."""
    app = await enrolled(client)
    code = app.code()
    calls = [
        client.call("two-factor.backup-codes.regenerate", access=app.access, password=PASSWORD, code=code)
        for _ in range(2)
    ]
    codes = sorted([reply.code for reply in await asyncio.gather(*calls)])
    assert codes == ["INVALID_TWO_FACTOR_CODE", "OK"]
    assert (await audited(dev, app.user_id)).count("two_factor_refused") == 1
