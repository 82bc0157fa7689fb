"""The settings as variables of the environment say them: their names, all that is wrong, and what to do about it."""

import os
from typing import Any

from pydantic import AliasChoices, ValidationError

from adapters.settings import Argon2Cost, Rate, Settings


class BadSettings(Exception):
    """The environment does not make sense; the message lists every fault, a line each."""


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment; raises `BadSettings` with every fault by its variable's name."""
    settings, faults = read_what_is_good(**overrides)
    if faults:
        raise BadSettings("\n".join(lines_of(faults)))
    return settings


def lines_of(faults: dict[str, list[str]]) -> list[str]:
    """What is wrong, as an operator reads it: a line for each fault, with its variable's name."""
    return [f"{variable_of(name)}: {fault}" for name in faults for fault in faults[name]]


def read_what_is_good(**overrides: object) -> tuple[Settings, dict[str, list[str]]]:
    """The settings, a default in the place of each that is wrong, and what is wrong with those.

    A server whose address is wrong has a stand-in that leads nowhere: look into the faults before asking it.
    """
    faults: dict[str, list[str]] = {}
    stand_ins: dict[str, Any] = {}
    for _ in Settings.model_fields:
        try:
            return Settings(**(overrides | stand_ins)), faults  # type: ignore[arg-type]  # pydantic checks them
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False):
                name = _field_of(str(item["loc"][0]))
                if name not in stand_ins:
                    faults.setdefault(name, []).append(_fault(name, item["type"], item["loc"][1:], item["msg"]))
            stand_ins = {name: _STAND_INS.get(name, Settings.model_fields[name].default) for name in faults}
    raise AssertionError("a default is not valid")


_STAND_INS = {
    "nats_url": "nats://127.0.0.1:1",
    "database_url": "postgresql://127.0.0.1:1/none",
    "redis_url": "none",
    "smtp_url": "smtp://127.0.0.1:1",
}


def _field_of(location: str) -> str:
    """Pydantic names a field by its alias where it has one."""
    return next((name for name in Settings.model_fields if location in {name, variable_of(name)}), location)


def _fault(name: str, kind: str, inside: tuple[int | str, ...], message: str) -> str:
    """What is wrong and what would be right; never the value, which may be a secret."""
    field = Settings.model_fields[name]
    if kind == "missing":
        return f"not set; {field.description}, for example {(field.examples or ['none'])[0]}"
    words = message.removeprefix("Value error, ").replace("Input should", "should")
    part = "".join(f"{part + 1}. part " if isinstance(part, int) else f"{part} " for part in inside)
    return f"{part}{words}"


def written(value: object) -> str:
    """A setting's value as its variable would say it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Rate():
            return f"{value.tries_max}/{value.window_s}"
        case Argon2Cost():
            return f"m={value.memory_kib},t={value.passes},p={value.lanes}"
        case tuple():
            return " ".join(part if isinstance(part, str) else f"{part:g}" for part in value)
        case _:
            return str(value)


def advice_for(name: str) -> str:
    """What to do about a setting that is wrong."""
    field = Settings.model_fields[name]
    if field.is_required():
        return f"set {variable_of(name)}: {field.description}"
    return f"correct {variable_of(name)}, or leave it out for its default ({field.description})"


def unknown_variables() -> list[str]:
    """Variables with our prefix that are none of our settings: a typing error, or one of a later release."""
    known = {variable_of(name) for name in Settings.model_fields} | _OTHERS
    ours = (
        name for name in os.environ if name.startswith("USER_SERVICE_") and not name.startswith("USER_SERVICE_DEV_")
    )
    return sorted(set(ours) - known)


_OTHERS = {"USER_SERVICE_TOKEN", "USER_SERVICE_ADMIN_PASSWORD", "USER_SERVICE_SUPERVISED"}


def variable_of(name: str) -> str:
    """The environment variable of a setting (pydantic names it by alias already where it has one)."""
    field = Settings.model_fields.get(name)
    if field is not None and isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return name if name.isupper() else f"USER_SERVICE_{name.upper()}"
