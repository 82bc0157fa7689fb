"""An authenticator app, as far as tests need one: an account whose second factor is on, and the codes that it shows."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pyotp

from tests.gateway import PASSWORD, Gateway, Reply, database

STEP_S = 30


class Authenticator:
    """An account with its app. Steps count from the present one; that before it may be over when its code arrives."""

    def __init__(self, client: Gateway, account: Mapping[str, Any], secret: str) -> None:
        self._client = client
        self.user: Mapping[str, Any] = account["user"]
        self.tokens: Mapping[str, Any] = account["tokens"]
        self.secret = secret
        self.backup_codes: list[str] = []

    @property
    def email(self) -> str:
        return str(self.user["email"])

    @property
    def user_id(self) -> UUID:
        return UUID(str(self.user["id"]))

    @property
    def access(self) -> str:
        return str(self.tokens["accessToken"])

    def code(self, step: int = 0) -> str:
        return pyotp.TOTP(self.secret).generate_otp(int(time.time()) // STEP_S + step)

    def wrong_code(self) -> str:
        right = {self.code(step) for step in range(-3, 4)}
        return next(code for code in (f"{number:06}" for number in range(10)) if code not in right)

    async def fresh_code(self) -> str:
        """A code that is right now, whatever was used before: a test has no half minute to wait."""
        async with database(self._client.ready) as rows:
            await rows.execute("UPDATE second_factors SET last_step = -1 WHERE user_id = $1", self.user_id)
        return self.code()

    async def challenge(self, *, headers: Mapping[str, str] | None = None, remember: bool = False) -> str:
        reply = await self._client.call(
            "auth.login", headers=headers, email=self.email, password=PASSWORD, rememberMe=remember
        )
        assert reply.data["twoFactorRequired"], reply.body
        return str(reply.data["challengeToken"])

    async def show(self, *, headers: Mapping[str, str] | None = None, **shown: Any) -> Reply:  # noqa: ANN401 - the fields of a body
        """A sign-in in two steps; the reply of the second."""
        challenge = await self.challenge(headers=headers)
        return await self._client.call("auth.two-factor", headers=headers, challengeToken=challenge, **shown)


async def enrolled(client: Gateway, *, headers: Mapping[str, str] | None = None) -> Authenticator:
    """A fresh account whose second factor is on, and which has forgotten the code that turned it on."""
    account = await client.signed_in(headers=headers)
    access = account["tokens"]["accessToken"]
    begun = (await client.call("two-factor.enable", access=access, headers=headers, password=PASSWORD)).data
    app = Authenticator(client, account, begun["secret"])
    verified = await client.call("two-factor.verify", access=access, headers=headers, code=app.code())
    app.backup_codes = verified.data["backupCodes"]
    await app.fresh_code()
    return app
