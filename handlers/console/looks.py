"""How pages are made: templates that escape all they are given, and refuse what they are not given."""

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adapters.personal_data import NOBODY

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"


def render(template: str, **values: object) -> str:
    """A page, or a piece of one, as HTML."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, auto_reload=False,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(time=_time, thousands=_thousands, duration=_duration, plain=_plain)
    environment.globals.update(asset=_asset, address=address, NOBODY=str(NOBODY))
    return environment


@cache
def _asset(name: str) -> str:
    """A static file's address, another one for other content: a browser may keep it."""
    return f"/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def _time(written: str | datetime | None) -> Markup:
    """To the second, in UTC, as everything here is."""
    if written is None:
        return Markup('<span class="none">never</span>')
    at = datetime.fromisoformat(written) if isinstance(written, str) else written
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), at.isoformat(), at.strftime("%Y-%m-%d %H:%M:%S")
    )


def _thousands(number: float) -> str:
    return f"{number:,}"


def _plain(value: object) -> object:
    """JSON's values as people write them."""
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return value


def _duration(seconds: float) -> str:
    """In the two largest units that say something."""
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def address(path: str, *asked: dict[str, object], **more: object) -> str:
    """A path with the fields that say something."""
    fields: dict[str, object] = {}
    for some in (*asked, more):
        fields.update(some)
    query = urlencode({name: value for name, value in fields.items() if value not in (None, "")}, doseq=True)
    return f"{path}?{query}" if query else path
