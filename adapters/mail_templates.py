"""Renders a mail in the reader's language from one shared layout and a catalogue of sentences for each language."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from pydantic import BaseModel, ConfigDict, Field

LANGUAGES = ("en", "es", "fr", "de")

_FALLBACK = "en"
_FACTS: Mapping[str, tuple[str, ...]] = {
    "new_device": ("device", "ip", "time"),
    "token_reuse": ("device", "ip", "time"),
    "second_factor_guessing": ("ip", "time"),
    "password_changed": ("ip", "time"),
    "email_change_warning": ("ip", "time"),
    "email_changed": ("time",),
    "email_changed_old": ("time",),
    "two_factor_on": ("ip", "time"),
    "two_factor_off": ("ip", "time"),
    "two_factor_reset": ("time",),
    "two_factor_reset_admins": ("account", "actor", "time"),
    "backup_code_used": ("remaining", "ip", "time"),
    "role_changed": ("from_role", "to_role", "time"),
    "role_changed_admins": ("account", "from_role", "to_role", "actor", "time"),
}
_LINKS = frozenset({"link", "second_link"})
# Line breaks would forge a paragraph or a header, bidirectional controls would reorder the text around a value.
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")

_DATA = files("adapters") / "mail"
# Text is never read as HTML; what goes into the page is escaped there.
_AS_TEXT = Environment(
    autoescape=False,  # noqa: S701
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_AS_HTML = Environment(autoescape=True, undefined=StrictUndefined)


@dataclass(frozen=True, slots=True)
class RenderedMail:
    """A mail's words, with the language that they are really in."""

    subject: str
    text: str
    html: str
    language: str


class _Letter(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    heading: str
    opening: tuple[str, ...] = Field(min_length=1)
    advice: tuple[str, ...] = ()
    button: str = ""
    closing: tuple[str, ...] = ()
    second: str = ""


class _Catalogue(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    months: tuple[str, ...] = Field(min_length=12, max_length=12)
    first_day: str
    time: str
    link_note: str
    expiry: str
    footer: str
    labels: dict[str, str]
    letters: dict[str, _Letter]


def render(template: str, language: str, values: Mapping[str, str | datetime]) -> RenderedMail:
    """Fill a mail; an unknown language falls back to English, a missing value raises jinja2's UndefinedError."""
    spoken = language.lower().partition("-")[0]
    if spoken not in LANGUAGES:
        spoken = _FALLBACK
    catalogue = _catalogue(spoken)
    letter = catalogue.letters[template]
    shown = {name: _shown(name, value, catalogue) for name, value in values.items()}

    page: dict[str, object] = {
        "language": spoken,
        "subject": _fill(letter.subject, shown),
        "heading": _fill(letter.heading, shown),
        "opening": _fill_all(letter.opening, shown),
        "facts": [(catalogue.labels[name], _fill(f"{{{{ {name} }}}}", shown)) for name in _FACTS.get(template, ())],
        "advice": _fill_all(letter.advice, shown),
        "closing": _fill_all(letter.closing, shown),
        "footer": _fill(catalogue.footer, shown),
        **_way_on(letter, catalogue, shown),
        **_second_way(letter, shown),
    }
    return RenderedMail(
        subject=str(page["subject"]),
        text=_layout("layout.txt").render(page),
        html=_layout("layout.html").render(page),
        language=spoken,
    )


def _way_on(letter: _Letter, catalogue: _Catalogue, shown: Mapping[str, str]) -> dict[str, str]:
    """The button with its link, which never stands without saying until when it works."""
    button = _fill(letter.button, shown)
    if not button:
        return {"button": ""}
    return {
        "button": button,
        "link": _fill("{{ link }}", shown),
        "link_note": catalogue.link_note,
        "expiry": _fill(catalogue.expiry, shown),
    }


def _second_way(letter: _Letter, shown: Mapping[str, str]) -> dict[str, str]:
    """A second link under the text; its sentence says what it does, and until when."""
    second = _fill(letter.second, shown)
    return {"second": second, "second_link": _fill("{{ second_link }}", shown)} if second else {"second": ""}


def _shown(name: str, value: str | datetime, catalogue: _Catalogue) -> str:
    """A value as one line of plain text."""
    if isinstance(value, datetime):
        return _moment(value, catalogue)
    if name in _LINKS and not value.startswith(("https://", "http://")):
        raise ValueError("a mail's link must be an http address")
    return _UNPRINTABLE.sub(" ", value).strip()


def _moment(at: datetime, catalogue: _Catalogue) -> str:
    """A time as people of that language write it, in UTC, because we do not know where the reader is."""
    if at.tzinfo is None:
        raise ValueError("a time in a mail must be aware")
    utc = at.astimezone(UTC)
    day = catalogue.first_day if utc.day == 1 else str(utc.day)
    return catalogue.time.format(day=day, month=catalogue.months[utc.month - 1], year=utc.year, clock=f"{utc:%H:%M}")


def _fill_all(sentences: Iterable[str], shown: Mapping[str, str]) -> list[str]:
    return [_fill(sentence, shown) for sentence in sentences]


def _fill(sentence: str, shown: Mapping[str, str]) -> str:
    """A sentence as plain text; escaping happens once, in the layout."""
    return _sentence(sentence).render(shown)


@cache
def _sentence(source: str) -> Template:
    """Compiled once; only what the catalogues and this module hold comes here, which bounds the cache."""
    return _AS_TEXT.from_string(source)


@cache
def _layout(name: str) -> Template:
    environment = _AS_HTML if name.endswith(".html") else _AS_TEXT
    return environment.from_string((_DATA / name).read_text(encoding="utf-8"))


@cache
def _catalogue(language: str) -> _Catalogue:
    source = (_DATA / f"{language}.toml").read_text(encoding="utf-8")
    return _Catalogue.model_validate(tomllib.loads(source))
