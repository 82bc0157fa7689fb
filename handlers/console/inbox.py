"""The inbox of `dev`: every mail that was sent, as its reader would see it."""

import asyncio
import re
import time
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import partial
from pathlib import Path

from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from adapters.mail_sink import read_mail, stored_mails
from contracts.operations import Permission
from handlers.console.visit import Means, Refused, Visit, signed_in

SHOWN_MAX = 100
MAIL_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'self'"
"""A mail's HTML is a stranger's: it runs no script, loads nothing, and leads nowhere."""
_LINK = re.compile(r"https?://[^\s<>\"]+")


def inbox_routes(means: Means, mail_dir: Path) -> list[BaseRoute]:
    """The list, one mail, and its HTML by itself for a frame without rights."""
    one = "/inbox/{name:str}"
    return [
        Route("/inbox", signed_in(means, partial(listed, mail_dir=mail_dir))),
        Route(one, signed_in(means, partial(shown, mail_dir=mail_dir))),
        Route(f"{one}/html", signed_in(means, partial(html_part, mail_dir=mail_dir))),
    ]


async def listed(visit: Visit, *, mail_dir: Path) -> Response:
    """The newest mails; of one address where the page's address says so."""
    await _require_admin(visit)
    to = visit.address.get("to", "").strip()
    mails = await asyncio.to_thread(_newest, mail_dir, to)
    return visit.page("inbox.html", mails=mails, to=to, shown_max=SHOWN_MAX)


async def shown(visit: Visit, *, mail_dir: Path) -> Response:
    """One mail: HTML in a frame, text, links, headers."""
    await _require_admin(visit)
    name, mail = await _read(visit, mail_dir)
    text = _text(mail, "plain")
    links = list(dict.fromkeys(found.rstrip(".,;:)]") for found in _LINK.findall(text)))
    return visit.page("mail.html", name=name, mail=_head(name, mail), text=text, links=links,
                      headers=[(str(header), str(value)) for header, value in mail.items()],
                      has_html=mail.get_body(("html",)) is not None)  # fmt: skip


async def html_part(visit: Visit, *, mail_dir: Path) -> Response:
    """The HTML as it was sent, without any right."""
    await _require_admin(visit)
    _, mail = await _read(visit, mail_dir)
    headers = {"Content-Security-Policy": MAIL_POLICY, "X-Frame-Options": "SAMEORIGIN"}
    return HTMLResponse(_text(mail, "html"), headers=headers)


async def _require_admin(visit: Visit) -> None:
    """Mails hold links that let people in: they are for whoever may do anything; raises `Refused`."""
    await visit.look(now=time.monotonic())
    if not visit.session.may(Permission.ROLES_WRITE.value):
        raise Refused({"code": "FORBIDDEN", "message": "The inbox is for admins."})


async def _read(visit: Visit, mail_dir: Path) -> tuple[str, EmailMessage]:
    name = str(visit.request.path_params["name"])
    path = mail_dir / f"{name}.eml"
    if not (name.isascii() and name.isdigit()) or not await asyncio.to_thread(path.is_file):
        raise Refused({"code": "NOT_FOUND", "message": "There is no such mail."})
    return name, await asyncio.to_thread(read_mail, path)


def _newest(mail_dir: Path, to: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for path in reversed(stored_mails(mail_dir)):
        mail = read_mail(path)
        if not to or to.lower() in str(mail["To"]).lower():
            found.append(_head(path.stem, mail))
        if len(found) == SHOWN_MAX:
            break
    return found


def _head(name: str, mail: EmailMessage) -> dict[str, object]:
    at = datetime.fromtimestamp(int(name) / 1e9, UTC)
    return {"name": name, "at": at, "to": str(mail["To"]), "from": str(mail["From"]), "subject": str(mail["Subject"])}


def _text(mail: EmailMessage, kind: str) -> str:
    body = mail.get_body((kind,))
    return str(body.get_content()) if body is not None else ""
