"""A walk through every operation, and how much longer each takes while something is away."""

import json
import statistics
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field

from adapters.mail_sink import token_of
from tests.faults.people import BACK_S_MAX
from tests.gateway import PASSWORD, Gateway, Reply, new_email
from tests.program import eventually

SLOWER_S_MAX = 0.9  # 300 ms are promised; this machine is shared
ROUNDS = 5
MANY = "100000/60"
# Limits count in Valkey, so they must be on for its absence to be felt.
LIMITED = {
    "USER_SERVICE_RATE_LIMITS": "on",
    "USER_SERVICE_LIMIT_REGISTER": MANY,
    "USER_SERVICE_LIMIT_GENERAL": MANY,
    "USER_SERVICE_LIMIT_LOGIN_SOURCE": MANY,
    "USER_SERVICE_LIMIT_MAIL_SOURCE": MANY,
    "USER_SERVICE_LIMIT_BUS_CLIENT": MANY,
}


@dataclass
class Walk:
    """One round through every operation by a user of its own; how long each took."""

    client: Gateway
    admin: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    async def timed(self, name: str, sending: Awaitable[Reply]) -> Reply:
        reply = await self._asked(name, sending)
        assert reply.ok, (name, reply.body)
        return reply

    async def _asked(self, name: str, sending: Awaitable[Reply]) -> Reply:
        began = time.perf_counter()
        reply = await sending
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        return reply

    async def call(self, name: str, access: str | None = None, **body: str | int) -> Reply:
        headers = {"Authorization": f"Bearer {access}"} if access else {}
        return await self.timed(name, self.client.send(f"users.v1.{name}", json.dumps(body).encode(), headers=headers))

    async def _is_ready(self) -> bool:
        return (await self._asked("health.ready", self.client.call("health.ready"))).ok

    async def round(self) -> None:
        email = new_email()
        await self.timed("auth.register", self.client.register(email))
        await self.call("auth.resend-verification", email=email)
        token = token_of(await self.client.mail_to(email, "verify-email")) or ""
        await self.call("auth.verify-email", token=token)
        found = (await self.call("auth.login", email=email, password=PASSWORD)).data
        tokens, user_id = found["tokens"], found["user"]["id"]
        access = tokens["accessToken"]
        await self.call("auth.verify-token", token=access)
        await self.call("auth.jwks")
        await self.call("me.update", access, firstName="Augusta")
        await self.call("profile.update", access, displayName="The Countess")
        for _ in range(2):
            me = (await self.call("me.get", access)).data
            assert (me["user"]["firstName"], me["profile"]["displayName"]) == ("Augusta", "The Countess")
        profile = (await self.call("profile.get", access, userId=user_id)).data["profile"]
        assert profile["displayName"] == "The Countess"
        await self.call("admin.users.list", self.admin, limit=5)
        shown = (await self.call("admin.users.get", self.admin, userId=user_id)).data
        assert shown["user"]["firstName"] == "Augusta"
        await self.call("admin.audit-logs.list", self.admin, userId=user_id)
        await self.call("health.check")
        await eventually(self._is_ready, within_s=10, what="every server to answer within 200 ms")
        renewed = (await self.call("auth.refresh", refreshToken=tokens["refreshToken"])).data["tokens"]
        await self.call("auth.logout", renewed["accessToken"])
        assert (await self.client.call("me.get", access=access)).code == "INVALID_TOKEN"

    async def rounds(self, number: int = ROUNDS) -> dict[str, float]:
        """The median of each operation."""
        self.seconds = {}
        for _ in range(number):
            await self.round()
        return {name: statistics.median(times) for name, times in self.seconds.items()}


async def until_it_is(status: str, client: Gateway) -> None:
    """What the service says of itself; a server that a busy machine keeps from answering within 200 ms counts, too."""

    async def is_so() -> bool:
        return bool((await client.call("health.check")).data["status"] == status)

    await eventually(is_so, within_s=BACK_S_MAX, what=f"the service to be {status}")


def slower(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: round(after[name] - before[name], 4) for name in before}
