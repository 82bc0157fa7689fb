"""Writes the pages of docs/ that follow from code: operations, events and settings (`make docs`)."""

import re
import types
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from adapters.environment import variable_of, written
from adapters.settings import Settings
from contracts.api import OPERATIONS
from contracts.events import EVENTS, Event, Metadata, personal_fields
from contracts.operations import FRESH_S, Caller, Operation
from contracts.wire import Page, Wire
from handlers.events.mails import MAILS

HERE = Path(__file__).parent
NOTE = "<!-- Written by `make docs`; change the code it is made from. -->\n"

# What the validators of contracts/ demand, in words: JSON Schema cannot say it.
RULES = {
    "_one_address": "one mail address, at most 254 bytes",
    "_person_name": "letters of any script, digits, spaces and `' - . ,`",
    "_bounded_secret": "1 to 1024 bytes",
    "_bounded_token": "1 to 4096 visible ASCII characters",
    "_https_address": "an `https` address",
    "_iana_zone": "an IANA time zone",
    "_of_our_times": "with its offset, between 1970 and 9000",
}
CALLERS = {Caller.ANYONE: "anyone", Caller.IF_SIGNED_IN: "anyone; a token is used", Caller.SIGNED_IN: "signed in"}
WHEN = {
    "UserRegistered": "An account was opened.",
    "EmailVerificationRequested": "A verification mail is to be sent; `tokenId` names its link.",
    "EmailVerified": "The owner of the address has used the link; `operator`: an operator vouched for it.",
    "UserLogin": "A sign-in that succeeded; it opens a session.",
    "LoginFailed": "A wrong password for a known account; for the 1st, 2nd, 4th, 8th … in a row.",
    "UserLoggedOut": "A session was ended by its user.",
    "SessionRevoked": "A session was ended by the service; `reason` says why.",
    "RefreshTokenReused": "A spent refresh token came again outside the grace; its session is ended.",
    "ProfileUpdated": "Name or profile changed; `changed` holds the new values.",
    "UserRoleChanged": "An account's role is another one.",
    "UserStatusChanged": "An account was suspended, or may be used again.",
    "UserInvited": "An operator made an account; `tokenId` names the link of its invitation.",
    "RegistrationRepeated": "Somebody registered with this account's address; only where such addresses are hidden.",
    "AccountLocked": "Too many failed sign-ins from all sources together: only known devices may try until then.",
    "AccountUnlocked": "Every source may try again; `reason` says who let them.",
    "PasswordResetRequested": "A reset mail is to be sent; `tokenId` names its link.",
    "PasswordReset": "The password was replaced by way of a mail link; every session is ended.",
    "PasswordChanged": "The user replaced the password; their other sessions are ended.",
    "PasswordResetRequired": "The password was disowned: nobody signs in before it is reset.",
    "EmailChangeRequested": "The user asked for another address; it takes effect when its mail's link is used.",
    "EmailChanged": "The account has another address.",
    "EmailChangeCancelled": "A change of the address was called off, or undone, from the old address.",
    "AvatarUpdated": "The picture of a profile is another one, or gone.",
    "TwoFactorEnabled": "Sign-in needs a second factor from here.",
    "TwoFactorDisabled": "Sign-in needs no second factor any more.",
    "BackupCodesRegenerated": "The user has new backup codes; the older ones are void.",
    "BackupCodeUsed": "A backup code was spent; `remaining` are left.",
    "UserDeleted": "An account was closed; its data are erased after a time of grace.",
    "UserErased": "All personal data of a deleted account are destroyed. No event of this user follows.",
    "DataExported": "The user was given all that is held about them.",
}

_OPERATIONS_INTRODUCTION = """\
Every operation is a NATS subject; [gateway.md](gateway.md) says how to call it. Limits are named by category, their
figures are in [settings.md](settings.md). The column `key` says whether an `Idempotency-Key` is honoured and how long
the first reply is given again; a reply that holds tokens is given again for a minute. Then what an operation may leave
behind: events, the mails that these send ([operations.md](operations.md) says to whom), and rows of the audit log
beside those of the events, each of which is a row too (`UserLogin` is `user_login`). A refusal at the door (no token,
no permission, a limit) leaves none.
"""
_EVENTS_INTRODUCTION = """\
Subject `users.events.v1.<Type>.<userId>` on stream `USER_EVENTS`; [listener.md](listener.md) says how to read them. A
field marked personal may be null in any event, and is null once its user is erased.
"""
_SETTINGS_INTRODUCTION = """\
Read from the environment at the start; all faults are reported at once. `user-service config` prints the values in
force. Rates are `tries/seconds`. A variable that is not listed here is ignored.
"""
_SETTINGS_END = """\
`user-service create-admin` also reads `USER_SERVICE_ADMIN_PASSWORD`; without it, it asks. `user-service dev` sets the
four server addresses and the key file itself, and takes a free port where `HTTP_PORT` or
`USER_SERVICE_CONSOLE_PORT` is not set."""


def operations_page() -> str:
    """Every operation: who may call it, how often, what goes in and what comes out."""
    lines = [
        "# Operations\n",
        NOTE,
        _OPERATIONS_INTRODUCTION,
        "| subject | route | caller | limit | key | events | mails | audit actions without an event |",
        "|---|---|---|---|---|---|---|---|",
        *(_operation_row(operation) for operation in OPERATIONS),
    ]
    for operation in OPERATIONS:
        lines += ["", *_operation_section(operation)]
    lines += ["", "## Shapes", "", "What replies are made of. Times are RFC 3339 in UTC."]
    for model in sorted(_shapes(), key=lambda model: model.__name__):
        lines += ["", f"### {model.__name__}", "", *([_sentence(model), ""] if model.__doc__ else []), *_fields(model)]
    return "\n".join(lines) + "\n"


def _operation_row(operation: Operation) -> str:
    anchor = operation.subject.replace(".", "")
    return (
        f"| [`{operation.subject}`](#{anchor}) | `{operation.route}` | {_caller(operation)} | "
        f"`{operation.limit.value}` | {_key(operation)} | {_names(operation.emits)} | {_names(_mails(operation))} | "
        f"{_names(operation.audits)} |"
    )


def _names(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _mails(operation: Operation) -> list[str]:
    return [
        mail.template
        for event in operation.emits
        for mail in MAILS.get(event, ())
        if (operation.name, mail.template) not in _NEVER
    ]


# What an event says decides which of its mails go out, and an operation may say only one thing.
_NEVER = frozenset(
    {
        ("auth-reset-password", "welcome"),
        ("two-factor-disable", "two_factor_reset"),
        ("two-factor-disable", "two_factor_reset_admins"),
        ("admin-users-reset-two-factor", "two_factor_off"),
    }
)


def _caller(operation: Operation) -> str:
    who = CALLERS[operation.caller] if isinstance(operation.caller, Caller) else f"`{operation.caller.value}`"
    return f"{who}, proof at most {FRESH_S // 60} min old" if operation.fresh else who


def _key(operation: Operation) -> str:
    if not operation.writes:
        return "no"
    return "yes, 60 s" if operation.holds_secrets else "yes, 24 h"


def _operation_section(operation: Operation) -> list[str]:
    lines = [f"## {operation.subject}", "", _sentence(operation.request), ""]
    lines += _fields(operation.request) if operation.request.model_fields else ["Takes `{}` or an empty body."]
    if issubclass(operation.reply, Page):
        item = get_args(operation.reply.model_fields["items"].annotation)[0]
        beside = _link(operation.reply.model_fields["pagination"].annotation)
        return [*lines, "", f"`data`: list of {_link(item)}; `pagination` beside it: {beside}"]
    if not operation.reply.model_fields:
        return [*lines, "", "`data`: `{}`"]
    if operation.reply in _shapes():
        return [*lines, "", f"`data`: {_link(operation.reply)}"]
    fields = (f"`{_name(n, f)}`: {_type(f.annotation)}" for n, f in operation.reply.model_fields.items())
    return [*lines, "", f"`data`: {' · '.join(fields)}"]


def _shapes() -> set[type[BaseModel]]:
    """The models that replies refer to, and those that these refer to."""
    direct = {operation.reply for operation in OPERATIONS if _is_a_shape_itself(operation.reply)}
    return _parts_of(operation.reply for operation in OPERATIONS) | direct


def _parts_of(models: Iterable[type[BaseModel]]) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    waiting = list(models)
    while waiting:
        for field in waiting.pop().model_fields.values():
            for part in _models_in(field.annotation):
                if part not in found:
                    found.add(part)
                    waiting.append(part)
    return found


def _is_a_shape_itself(model: type[Wire]) -> bool:
    return sum(operation.reply is model for operation in OPERATIONS) > 1 and bool(model.model_fields)


def _models_in(annotation: object) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _fields(model: type[BaseModel], *, personal: frozenset[str] | None = None) -> list[str]:
    """A table of a model's fields; for events with a column that says which are personal."""
    more = ("", "") if personal is None else (" personal |", "---|")
    lines = [f"| field | type | default |{more[0]}", f"|---|---|---|{more[1]}"]
    for name, field in model.model_fields.items():
        wire_name = _name(name, field)
        last = "" if personal is None else f" {'yes' if wire_name in personal else ''} |"
        lines.append(f"| `{wire_name}` | {_described(field)} | {_default(field)} |{last}")
    return lines


def _name(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _described(field: FieldInfo) -> str:
    """Type, then every bound and rule that stands on it."""
    words = [_type(field.annotation), *_rules(field.annotation, field.metadata)]
    if field.description:
        words.append(field.description)
    return "; ".join(dict.fromkeys(words))


def _type(annotation: object) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " ".join(f"`{_json(value)}`" for value in parts)
    if origin in {Union, types.UnionType}:
        names = [_type(part) for part in parts if part is not type(None)]
        return " or ".join(names) + (" or null" if type(None) in parts else "")
    if origin in {list, dict}:
        return f"list of {_type(parts[0])}" if origin is list else "object"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _link(annotation) if annotation in _shapes() else _inline(annotation)
    return _PLAIN.get(annotation, "any JSON")


_PLAIN: dict[object, str] = {
    str: "text",
    bytes: "base64 text",
    SecretStr: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    UUID: "UUID",
    datetime: "time",
    AwareDatetime: "time",
    dict: "object",
    type(None): "null",
}


def _inline(model: type[BaseModel]) -> str:
    return "{" + ", ".join(f"`{_name(n, f)}`" for n, f in model.model_fields.items()) + "}"


def _link(model: Any) -> str:  # noqa: ANN401 - a model, as pydantic's annotations have it
    return f"[{model.__name__}](#{model.__name__.lower()})"


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rules(annotation: object, metadata: Iterable[object]) -> list[str]:
    found: list[str] = []
    for item in metadata:
        if isinstance(item, AfterValidator):
            found += [RULES[name]] if (name := getattr(item.func, "__name__", "")) in RULES else []
        else:
            found += _bounds(item)
    if get_origin(annotation) is Annotated:
        found += _rules(get_args(annotation)[0], get_args(annotation)[1:])
    else:
        for part in get_args(annotation):
            found += _rules(part, ())
    return found


def _bounds(item: object) -> list[str]:
    words = {"ge": "at least {}", "le": "at most {}", "min_length": "at least {} long", "max_length": "at most {} long"}
    holders: list[Any] = [item, *getattr(item, "metadata", ())]
    found = [(word, getattr(holder, name, None)) for holder in holders for name, word in words.items()]
    return [word.format(value) for word, value in found if isinstance(value, int)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return "`[]`" if get_origin(field.annotation) is list else "an empty one"
    return "none" if field.default is None else f"`{_json(field.default)}`"


def _sentence(model: type[BaseModel]) -> str:
    return re.sub(r"\s+", " ", model.__doc__ or "").strip()


def events_page() -> str:
    """Every event of the stream, field by field."""
    lines = [
        "# Events\n",
        NOTE,
        _EVENTS_INTRODUCTION,
        "## Envelope",
        "",
        *_fields(Event),
        "",
        "`metadata`:",
        "",
        *_fields(Metadata),
    ]
    for name, model in EVENTS.items():
        lines += ["", f"## {name}", "", WHEN[name], "", *_fields(model, personal=personal_fields(model))]
    for shape in sorted(_parts_of(EVENTS.values()), key=lambda model: model.__name__):
        lines += ["", f"## {shape.__name__}", "", _sentence(shape), "", *_fields(shape)]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Every setting with its variable, default and meaning."""
    lines = [
        "# Settings\n",
        NOTE,
        _SETTINGS_INTRODUCTION,
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in sorted(Settings.model_fields.items(), key=lambda item: not item[1].is_required()):
        default = "required" if field.is_required() else _as_code(field.default)
        words = [f"{field.description or ''}{_choices(field)}", *_rules(field.annotation, field.metadata)]
        words += [f"for example `{example}`" for example in field.examples or ()]
        lines.append(f"| `{variable_of(name)}` | {default} | {'; '.join(words)} |")
    lines += [
        "",
        _SETTINGS_END,
    ]
    return "\n".join(lines) + "\n"


def _as_code(value: object) -> str:
    return "none" if value is None else f"`{written(value)}`"


def _choices(field: FieldInfo) -> str:
    options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return f" ({', '.join(f'`{option}`' for option in options)})" if options else ""


PAGES: dict[str, Callable[[], str]] = {
    "operations-table.md": operations_page,
    "events.md": events_page,
    "settings.md": settings_page,
}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
