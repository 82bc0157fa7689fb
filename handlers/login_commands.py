"""`user-service login` and `logout`: an operator's session for the commands that act on users and letters."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from handlers.own_session import Operator, Refused, forget_session, keep_session, kept_session, operator_on
from handlers.terminal import ReadyFile, nats_url_of, read_ready, run_to_end


def login(
    email: Annotated[str | None, typer.Argument(help="Your address; default: the admin of a running dev.")] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Sign in for the commands that act on users and letters; the password is asked for, or USER_SERVICE_PASSWORD."""
    address, password = _credentials(email, ready_file)

    async def work() -> None:
        async with operator_on(nats_url_of(ready_file), None) as operator:
            asked = {"email": address, "password": password}
            data = (await operator.ask("auth.login", asked, None))["data"]
            if data.get("twoFactorRequired"):
                data = await _second_step(operator, data["challengeToken"])
            keep_session(operator.server, data["tokens"])
            typer.echo(f"signed in as {address} ({data['user']['role']})")

    run_to_end(work())


def logout(ready_file: ReadyFile = None) -> None:
    """End that session, there and here."""

    async def work() -> None:
        async with operator_on(nats_url_of(ready_file), None) as operator:
            kept = kept_session(operator.server)
            forget_session(operator.server)
            try:
                await operator.ask("auth.logout", {"refreshToken": kept["refreshToken"]}, kept["accessToken"])
            except Refused as refusal:
                typer.echo(f"the session was over already ({refusal.code})", err=True)

    run_to_end(work())


async def _second_step(operator: Operator, challenge: str) -> Any:  # noqa: ANN401 - JSON
    code = typer.prompt("Code of your app, or a backup code")
    kind = "code" if code.strip().isdigit() else "backupCode"
    return (await operator.ask("auth.two-factor", {"challengeToken": challenge, kind: code.strip()}, None))["data"]


def _credentials(email: str | None, ready_file: Path | None) -> tuple[str, str]:
    if email is None:
        admin = read_ready(ready_file)["admin"]
        return str(admin["email"]), str(admin["password"])
    return email, os.environ.get("USER_SERVICE_PASSWORD") or typer.prompt("Password", hide_input=True)
