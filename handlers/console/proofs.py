"""What a session has to show besides its cookie: a fresh proof of who it is, and a second factor."""

from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from handlers.console.door import POLICY
from handlers.console.visit import Means, Refused, Visit, safe_path, signed_in


def proof_routes(means: Means) -> list[BaseRoute]:
    """The pages that a refused act leads to."""
    return [
        Route("/again", signed_in(means, again, before_proofs=True), methods=["GET", "POST"]),
        Route("/second-factor", signed_in(means, second_factor, before_proofs=True), methods=["GET", "POST"]),
    ]


async def again(visit: Visit) -> Response:
    """Prove once more who this is, and go on where that was asked for."""
    two_factor = await _has_second_factor(visit)
    if visit.request.method != "POST":
        return visit.page("again.html", says=None, two_factor=two_factor)
    body: dict[str, object] = {"password": str(visit.form.get("password", ""))}
    if code := visit.sent("code"):
        body["code" if code.isdigit() and len(code) == 6 else "backupCode"] = code
    try:
        reply = await visit.call("me.reauthenticate", **body)
    except Refused as refusal:
        return visit.page("again.html", status=401, says=refusal.says, two_factor=two_factor)
    visit.take(reply["data"]["tokens"])
    visit.session.has_second_factor |= two_factor
    return visit.to(_next(visit))


async def second_factor(visit: Visit) -> Response:
    """Turn the second factor on: without one nobody acts as an operator, unless a setting allows it.

    Secret and backup codes are shown here to their owner, once, and on no other page.
    """
    if await _has_second_factor(visit):
        return visit.to(f"/again?{urlencode({'next': _next(visit)})}")
    values: dict[str, object] = {"says": None, "begun": None, "codes": None, "next": _next(visit)}
    status = 200
    try:
        if visit.request.method == "POST" and (code := visit.sent("code")):
            values["codes"] = (await visit.call("two-factor.verify", code=code))["data"]["backupCodes"]
            visit.session.has_second_factor = True
        elif visit.request.method == "POST":
            password = str(visit.form.get("password", ""))
            values["begun"] = (await visit.call("two-factor.enable", password=password))["data"]
    except Refused as refusal:
        values["says"], status = refusal.says, 401
    response = visit.page("second_factor.html", status=status, **values)
    if values["begun"] is not None:  # its picture stands in the page: nobody else may ask for it
        response.headers["Content-Security-Policy"] = POLICY.replace("img-src 'self'", "img-src 'self' data:")
    return response


async def _has_second_factor(visit: Visit) -> bool:
    return bool((await visit.call("me.get"))["data"]["user"]["twoFactorEnabled"])


def _next(visit: Visit) -> str:
    return safe_path(visit.request.query_params.get("next", "/"))
