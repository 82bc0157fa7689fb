"""An account's life in any order, against a model of a few lines: what the rows say and what the model says agree."""

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyotp
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from adapters.mail_sink import token_of
from tests.gateway import Gateway, Reply, gateway, new_email, registration
from tests.program import Dev

T = TypeVar("T")
STEPS = int(os.environ.get("STEPS", "25"))
STORIES = int(os.environ.get("STORIES", "8"))
PASSWORDS = ("Brass_Canary=Sings+1843", "Difference_Engine#1822", "Jacquard+Loom=1804", "Bernoulli%Numbers.7")


@dataclass
class Session:
    tokens: dict[str, Any]
    alive: bool = True


@dataclass
class Account:
    """The model: what an account is, and from that what a sign-in with its password says."""

    email: str
    password: str
    status: str = "unverified"
    disowned: bool = False
    secret: str | None = None
    backup_codes: list[str] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    had: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)

    def sign_in_says(self, password: str) -> str:
        if self.status == "deleted" or password != self.password:
            return "INVALID_CREDENTIALS"
        refused = {"suspended": "ACCOUNT_SUSPENDED", "unverified": "EMAIL_NOT_VERIFIED"}.get(self.status)
        return refused or ("CHALLENGE" if self.secret else self.after_all_factors())

    def after_all_factors(self) -> str:
        return "PASSWORD_RESET_REQUIRED" if self.disowned else "OK"

    def end_sessions(self, *, but: Session | None = None) -> None:
        for session in self.sessions:
            session.alive = session is but and session.alive


class World:
    """The running program, asked from a thread that has no loop of its own."""

    def __init__(self, base: Path) -> None:
        self.loop = asyncio.new_event_loop()
        lots = ("GENERAL", "MAIL_ADDRESS", "MAIL_KIND", "MAIL_KIND_DAILY")
        self.dev = Dev(
            base / "data",
            USER_SERVICE_RATE_LIMITS="on",
            USER_SERVICE_SESSION_CAP="1000",
            **{f"USER_SERVICE_LIMIT_{name}": "1000000/900" for name in lots},
        )
        self.addresses = 0
        self.asked = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def address(self) -> str:
        """Another end user each time: what one source did limits no other."""
        self.addresses += 1
        return f"2001:db8:{self.addresses >> 16:x}:{self.addresses & 0xFFFF:x}::1"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    base: Path = tmp_path_factory.mktemp("order")
    found = World(base)
    found.run(found.dev.start())
    yield found
    found.run(found.dev.stop())
    found.loop.close()


class AnyOrder(RuleBasedStateMachine):
    world: World
    client: Gateway
    admin: str

    def call(self, operation: str, *, access: str | None = None, source: str | None = None, **body: object) -> Reply:
        self.world.asked += 1
        headers = {"Client-Ip": source or self.world.address()}
        if access:
            headers["Authorization"] = f"Bearer {access}"
        subject = f"users.v1.{operation}"
        return self.world.run(self.client.send(subject, json.dumps(body).encode(), headers=headers))

    def link(self, path: str) -> str:
        """The token of the newest mail of a kind that has not been used."""

        async def newest() -> str:
            async with asyncio.timeout(20):
                while True:
                    tokens = [str(token_of(mail)) for mail in self.client.mails_to(self.account.email, path)]
                    if fresh := [token for token in tokens if token not in self.account.used]:
                        self.account.used += tokens
                        return fresh[-1]
                    await asyncio.sleep(0.02)

        return self.world.run(newest())

    @initialize()
    def register(self) -> None:
        email = new_email()
        reply = self.call("auth.register", **registration(email) | {"password": PASSWORDS[0]})
        self.id = reply.data["user"]["id"]
        self.account = Account(email, PASSWORDS[0], had=[PASSWORDS[0]])

    def live(self) -> list[Session]:
        return [session for session in self.account.sessions if session.alive]

    @precondition(lambda self: self.account.status == "unverified")
    @rule()
    def verify(self) -> None:
        token = self.link("/verify-email")
        assert self.call("auth.verify-email", token=token).ok
        assert self.call("auth.verify-email", token=token).code == "INVALID_TOKEN"
        self.account.status = "active"

    @rule(password=st.sampled_from(PASSWORDS))
    def sign_in(self, password: str) -> None:
        reply = self.call("auth.login", email=self.account.email, password=password)
        said = self.account.sign_in_says(password)
        if said == "CHALLENGE":
            assert reply.data["twoFactorRequired"] is True
            if not self.account.backup_codes:
                return
            code = self.account.backup_codes.pop()
            body = {"challengeToken": reply.data["challengeToken"], "backupCode": code}
            reply, said = self.call("auth.two-factor", **body), self.account.after_all_factors()
            assert self.call("auth.two-factor", **body).code == "INVALID_TOKEN"
        assert reply.code == said, (reply.body, said)
        if said == "OK":
            self.account.sessions.append(Session(reply.data["tokens"]))

    @precondition(lambda self: self.account.status in {"active", "unverified"})
    @rule()
    def five_wrong_ones_close_one_source(self) -> None:
        for _ in range(5):
            assert not self.call(
                "auth.login", source="192.0.2.9", email=self.account.email, password="Wrong-Engine-1843"
            ).ok
        said = self.call("auth.login", source="192.0.2.9", email=self.account.email, password=self.account.password)
        assert said.code == "RATE_LIMITED"
        assert self.call("admin.users.unlock", access=self.admin, userId=self.id, reason="asked").ok

    @precondition(lambda self: self.account.sessions)
    @rule(data=st.data())
    def refresh(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self.account.sessions))
        reply = self.call("auth.refresh", refreshToken=session.tokens["refreshToken"])
        assert reply.code == ("OK" if session.alive else "INVALID_TOKEN")
        if reply.ok:
            session.tokens = reply.data["tokens"]

    @precondition(lambda self: self.live())
    @rule()
    def log_out(self) -> None:
        session = self.live()[0]
        assert self.call("auth.logout", access=session.tokens["accessToken"]).ok
        session.alive = False

    @rule(password=st.sampled_from(PASSWORDS))
    def reset(self, password: str) -> None:
        assert self.call("auth.forgot-password", email=self.account.email).ok
        if self.account.status not in {"active", "unverified"}:
            return
        token = self.link("/reset-password")
        reply = self.call("auth.reset-password", token=token, newPassword=password)
        if password in self.account.had:
            assert reply.code == "PASSWORD_POLICY_VIOLATION"
            return
        assert reply.ok, reply.body
        assert self.call("auth.reset-password", token=token, newPassword=password).code == "INVALID_TOKEN"
        self.renew(password)
        self.account.status, self.account.disowned = "active", False
        self.account.end_sessions()

    def renew(self, password: str) -> None:
        self.account.had = [*self.account.had, password][-5:]
        self.account.password = password

    def proof(self) -> dict[str, str] | None:
        """What an act that weighs asks for; None when the codes have run out."""
        if self.account.secret is None:
            return {}
        return {"backupCode": self.account.backup_codes[-1]} if self.account.backup_codes else None

    def spend(self) -> None:
        if self.account.secret is not None:
            self.account.backup_codes.pop()

    @precondition(lambda self: self.live() and self.proof() is not None)
    @rule(password=st.sampled_from(PASSWORDS))
    def change_password(self, password: str) -> None:
        session, proof = self.live()[0], self.proof() or {}
        reply = self.call(
            "me.change-password", access=session.tokens["accessToken"],
            **{"currentPassword": self.account.password, "newPassword": password, **proof},
        )  # fmt: skip
        if password in self.account.had:
            assert reply.code == "PASSWORD_POLICY_VIOLATION", reply.body
            return
        assert reply.ok, reply.body
        self.spend()
        self.renew(password)
        self.account.end_sessions(but=session)

    @precondition(lambda self: self.live() and self.account.secret is None)
    @rule()
    def turn_two_factor_on(self) -> None:
        access = self.live()[0].tokens["accessToken"]
        secret = self.call("two-factor.enable", access=access, password=self.account.password).data["secret"]
        assert self.call("two-factor.verify", access=access, code="000000").code == "INVALID_TWO_FACTOR_CODE"
        codes = self.call("two-factor.verify", access=access, code=pyotp.TOTP(secret).now()).data["backupCodes"]
        self.account.secret, self.account.backup_codes = secret, list(codes)

    @precondition(lambda self: self.live() and self.account.secret is not None and self.account.backup_codes)
    @rule()
    def turn_two_factor_off(self) -> None:
        access, code = self.live()[0].tokens["accessToken"], self.account.backup_codes.pop()
        body = {"password": self.account.password, "backupCode": code}
        assert self.call("two-factor.disable", access=access, **body).ok
        self.account.secret, self.account.backup_codes = None, []

    @precondition(lambda self: self.account.status == "active")
    @rule()
    def suspend(self) -> None:
        body = {"userId": self.id, "status": "suspended", "reason": "asked"}
        assert self.call("admin.users.update-status", access=self.admin, **body).ok
        self.account.status = "suspended"
        self.account.end_sessions()

    @precondition(lambda self: self.account.status == "suspended")
    @rule()
    def let_in_again(self) -> None:
        body = {"userId": self.id, "status": "active", "reason": "asked"}
        assert self.call("admin.users.update-status", access=self.admin, **body).ok
        self.account.status = "active"

    @precondition(lambda self: self.account.status == "active")
    @rule()
    def require_a_reset(self) -> None:
        body = {"userId": self.id, "reason": "asked"}
        assert self.call("admin.users.require-password-reset", access=self.admin, **body).ok
        self.account.disowned = True
        self.account.end_sessions()

    @precondition(lambda self: self.live() and self.proof() is not None)
    @rule(sure=st.sampled_from([False, False, True]))
    def delete(self, sure: bool) -> None:
        if not sure:
            return
        access = self.live()[0].tokens["accessToken"]
        reply = self.call("me.delete", access=access, password=self.account.password, **(self.proof() or {}))
        assert reply.ok, reply.body
        self.account.status = "deleted"
        self.account.end_sessions()

    @invariant()
    def sessions_are_what_the_model_says(self) -> None:
        for session in getattr(self, "account", Account("", "")).sessions[-4:]:
            token = session.tokens["accessToken"]
            assert self.call("me.get", access=token).code == ("OK" if session.alive else "INVALID_TOKEN")
            assert self.call("auth.verify-token", token=token).data["active"] is session.alive


@pytest.mark.timeout(900)
def test_an_account_in_any_order_is_what_the_model_says(world: World) -> None:
    """`STORIES` and `STEPS` make it longer; it prints how many requests it made."""
    AnyOrder.world = world
    opened = gateway(world.dev.ready)
    AnyOrder.client = world.run(opened.__aenter__())
    try:
        AnyOrder.admin = world.run(AnyOrder.client.admin())
        bounds = settings(max_examples=STORIES, stateful_step_count=STEPS, deadline=None, print_blob=True,
                          suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
        run_state_machine_as_test(AnyOrder, settings=bounds)
    finally:
        world.run(opened.__aexit__(None, None, None))
    print(f"{world.asked} requests agreed with the model")
