"""The published events: one model for each fact of the domain, its personal fields marked."""

import dataclasses
import inspect
from uuid import UUID

import pytest

from contracts.events import EVENTS, EventData, personal_fields, subject_of
from domain import events as facts
from domain.events import DomainEvent, ProfileUpdated

PERSONAL = {
    "email", "previousEmail", "newEmail", "firstName", "lastName", "ip", "userAgent", "deviceInfo", "changed",
    "avatar",
}  # fmt: skip
WRITTEN_BY_OPERATORS = {"UserRoleChanged", "UserStatusChanged", "AccountUnlocked", "PasswordResetRequired"}
FACTS: dict[str, type[DomainEvent]] = {
    name: fact
    for name, fact in inspect.getmembers(facts, inspect.isclass)
    if issubclass(fact, DomainEvent) and fact is not DomainEvent
}


def _wire_name(model: type[EventData], name: str) -> str:
    return model.model_fields[name].alias or name


def test_every_fact_is_published_and_nothing_else() -> None:
    assert set(FACTS) == set(EVENTS)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_a_model_has_the_fields_of_its_fact(name: str) -> None:
    assert {field.name for field in dataclasses.fields(FACTS[name])} == set(EVENTS[name].model_fields)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_personal_fields_are_marked(name: str) -> None:
    model = EVENTS[name]
    spelled = {_wire_name(model, field) for field in model.model_fields}
    reasons = {"reason"} if name in WRITTEN_BY_OPERATORS else set()
    assert personal_fields(model) == spelled & (PERSONAL | reasons)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_personal_fields_may_be_null(name: str) -> None:
    model = EVENTS[name]
    schema = model.model_json_schema(by_alias=True)["properties"]
    for field in personal_fields(model):
        assert {"type": "null"} in schema[field]["anyOf"], field


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_no_event_has_room_for_a_secret(name: str) -> None:
    words = {"password", "hash", "secret", "token", "code"}
    for field in EVENTS[name].model_fields:
        assert field.endswith("_id") or not words & set(field.split("_")), field


def test_changed_fields_are_spelled_as_on_the_wire() -> None:
    fact = ProfileUpdated(user_id=UUID(int=1), changed={"display_name": "Ada", "social_links": []}, revision=2)
    model = EVENTS["ProfileUpdated"].model_validate(fact, from_attributes=True)
    assert model.model_dump(mode="json", by_alias=True) == {
        "userId": str(UUID(int=1)),
        "changed": {"displayName": "Ada", "socialLinks": []},
        "revision": 2,
    }


def test_a_subject_names_type_and_user() -> None:
    assert subject_of("UserLogin", UUID(int=1)) == f"users.events.v1.UserLogin.{UUID(int=1)}"
