"""The table of operations: no row twice, none without a handler, none without words."""

import importlib
import pkgutil
from dataclasses import replace
from types import ModuleType

import pytest

import contracts
from contracts.api import BY_SUBJECT, OPERATIONS
from contracts.operations import Caller, DuplicateOperation, Limit, Operation, Permission, join
from contracts.wire import Empty, Wire
from domain.permissions import PERMISSIONS
from handlers.context import Call, Context
from handlers.dispatcher import TableMismatch, pair
from handlers.table import HANDLERS

GROUPS: tuple[ModuleType, ...] = tuple(
    module
    for module in (
        importlib.import_module(f"contracts.{found.name}") for found in pkgutil.iter_modules(contracts.__path__)
    )
    if hasattr(module, "OPERATIONS") and module.__name__ != "contracts.api"
)


class Ask(Wire):
    """Ask for nothing."""


class AskAgain(Wire):
    """Ask for nothing again."""


FIRST = Operation("users.v1.test.ask", Ask, Empty, "GET /ask")
SECOND = Operation("users.v1.test.ask-again", AskAgain, Empty, "GET /ask-again")


async def nothing(_ctx: Context, _call: Call, _request: Wire) -> Empty:
    return Empty()


def test_two_rows_join() -> None:
    assert join((FIRST,), (SECOND,)) == (FIRST, SECOND)


@pytest.mark.parametrize("twin", [replace(SECOND, subject=FIRST.subject), replace(SECOND, request=Ask), FIRST])
def test_two_rows_of_one_subject_or_request_are_refused(twin: Operation) -> None:
    with pytest.raises(DuplicateOperation):
        join((FIRST,), (twin,))
    with pytest.raises(DuplicateOperation):
        join((FIRST, twin))


def test_a_row_without_a_handler_is_refused() -> None:
    with pytest.raises(TableMismatch, match=r"users\.v1\.test\.ask-again has no handler"):
        pair((FIRST, SECOND), {Ask: nothing})


def test_a_handler_without_a_row_is_refused() -> None:
    with pytest.raises(TableMismatch, match="AskAgain is no operation's request"):
        pair((FIRST,), {Ask: nothing, AskAgain: nothing})


def test_a_whole_table_is_paired_by_subject() -> None:
    assert pair((FIRST,), {Ask: nothing}) == {FIRST.subject: (FIRST, nothing)}


def test_the_program_serves_what_it_publishes() -> None:
    table = pair(OPERATIONS, HANDLERS)
    assert set(table) == set(BY_SUBJECT)
    assert len(table) == len(OPERATIONS) == sum(len(group.OPERATIONS) for group in GROUPS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: str(operation.name))
def test_a_row_says_what_it_is(operation: Operation) -> None:
    assert operation.subject.startswith("users.v1.")
    assert operation.request.__doc__
    assert operation.request.__doc__ != Wire.__doc__
    assert "." not in operation.name
    verb, _, path = operation.route.partition(" ")
    assert verb in {"GET", "POST", "PUT", "DELETE"}
    assert path.startswith("/")
    if verb == "GET":
        assert not operation.writes or operation.emits == (
            "DataExported",
            "LoginFailed",
            "AccountLocked",
            "BackupCodeUsed",
        )


def test_a_route_leads_to_one_operation() -> None:
    routes = [operation.route for operation in OPERATIONS]
    assert sorted(routes) == sorted(set(routes))


def test_admin_operations_need_a_permission() -> None:
    for operation in OPERATIONS:
        is_admin = operation.subject.startswith("users.v1.admin.")
        assert isinstance(operation.caller, Permission) is is_admin, operation.subject


def test_an_operation_without_a_limit_is_on_the_list() -> None:
    free = {operation.name for operation in OPERATIONS if operation.limit is Limit.NONE}
    assert free == {"auth-verify-token", "auth-jwks", "health-check", "health-ready"}


def test_what_gives_tokens_away_counts_as_secret_where_it_is_kept() -> None:
    for operation in OPERATIONS:
        if operation.writes and "tokens" in operation.reply.model_fields:
            assert operation.holds_secrets, operation.subject


def test_every_permission_is_somebodys() -> None:
    granted = frozenset().union(*PERMISSIONS.values())
    assert {permission.value for permission in Permission} == granted
    assert {caller.name for caller in Caller} == {"ANYONE", "IF_SIGNED_IN", "SIGNED_IN"}
