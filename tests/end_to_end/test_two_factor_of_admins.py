"""An admin needs a second factor, and what counts is the session; keys are rotated meanwhile."""

from pathlib import Path

from tests.authenticator import Authenticator
from tests.gateway import gateway
from tests.program import Dev, command, until


async def test_an_admin_is_let_in_by_a_second_factor_and_out_without(tmp_path: Path) -> None:
    async with (
        Dev(tmp_path / "data", USER_SERVICE_ADMIN_SECOND_FACTOR="true") as dev,
        gateway(dev.ready) as client,
    ):
        email, password = dev.ready["admin"]["email"], dev.ready["admin"]["password"]
        account = (await client.call("auth.login", email=email, password=password)).data
        access = account["tokens"]["accessToken"]
        assert (await client.call("admin.users.list", access=access)).code == "TWO_FACTOR_REQUIRED"
        early = (await client.call("auth.login", email=email, password=password)).data["tokens"]["accessToken"]
        begun = (await client.call("two-factor.enable", access=access, password=password)).data
        app = Authenticator(client, account, begun["secret"])
        assert (await client.call("two-factor.verify", access=access, code=app.code())).ok
        assert (await client.call("admin.users.list", access=access)).ok  # the code was shown in this session

        assert (await client.call("admin.users.list", access=early)).code == "TWO_FACTOR_REQUIRED"
        code = await app.fresh_code()
        proven = (await client.call("me.reauthenticate", access=early, password=password, code=code)).data["tokens"]
        assert (await client.call("admin.users.list", access=proven["accessToken"])).ok  # at once

        keys = str(dev.data_dir / "keys.json")
        assert (await command("keys", "rotate", "two-factor", "--lead", "0", "--file", keys))[0] == 0
        await until(lambda: "keys read again" in dev.log, within_s=20, what="the new key to be known")
        challenge = (await client.call("auth.login", email=email, password=password)).data["challengeToken"]
        code = await app.fresh_code()
        signed_in = (await client.call("auth.two-factor", challengeToken=challenge, code=code)).data
        other = signed_in["tokens"]["accessToken"]
        assert (await client.call("admin.users.list", access=other)).ok

        code = await app.fresh_code()
        assert (await client.call("two-factor.disable", access=access, password=password, code=code)).ok
        for token in (access, other):
            assert (await client.call("admin.users.list", access=token)).code == "TWO_FACTOR_REQUIRED"
            assert (await client.call("me.get", access=token)).ok
