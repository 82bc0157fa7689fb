"""How commands fail: what is foreseen is one line, alone or in groups; what is not comes out as it is."""

from pathlib import Path

import pytest

from adapters.bus_client import BusFailure
from adapters.server_urls import asked
from domain.refusals import Unavailable
from handlers.terminal import Failure, leaves_of, run_to_end

ROOT = Path(__file__).parents[2]


class Foreseen(Exception):
    """What a command says it may meet."""


async def _fail(error: BaseException) -> None:
    raise error


def test_leaves_of_groups_in_groups() -> None:
    first, second, third = ValueError(), KeyError(), OSError()
    assert leaves_of(ExceptionGroup("", [first, ExceptionGroup("", [second, third])])) == [first, second, third]
    assert leaves_of(first) == [first]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BusFailure("no answer"), "no answer"),
        (ExceptionGroup("", [BusFailure("no answer")]), "no answer"),
        (ExceptionGroup("", [ExceptionGroup("", [Foreseen("the port is taken")])]), "the port is taken"),
        (ExceptionGroup("", [Foreseen("one"), OSError("another"), Foreseen("one")]), "one; another"),
        (Unavailable(), "a server does not answer (Unavailable); `user-service doctor` says more"),
        (ExceptionGroup("", [Failure("wrong")]), "wrong"),
    ],
)
def test_what_is_foreseen_becomes_one_line_and_no_group(error: BaseException, line: str) -> None:
    with pytest.raises(Failure) as caught:
        run_to_end(_fail(error), foreseen=(Foreseen,))
    assert str(caught.value) == line


def test_the_server_that_does_not_answer_is_named_without_its_secrets() -> None:
    with pytest.raises(Unavailable) as away, asked("PostgreSQL", "postgresql://ada:secret@db.example:5432/users"):
        raise Unavailable from ConnectionRefusedError()
    with pytest.raises(Failure, match=r"^PostgreSQL at postgresql://db\.example:5432 does not answer") as caught:
        run_to_end(_fail(away.value))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), ExceptionGroup("", [Foreseen("one"), KeyError("x")])])
def test_a_fault_of_the_program_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        run_to_end(_fail(error), foreseen=(Foreseen,))
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt()])])
def test_an_interrupt_ends_as_shells_expect(error: BaseException) -> None:
    with pytest.raises(SystemExit) as caught:
        run_to_end(_fail(error))
    assert caught.value.code == 130


def test_nothing_is_raised_through_a_starred_except() -> None:
    """Python before 3.11.4 wraps it in a group, so that the line for the user became a trace."""
    rooms = ("adapters", "contracts", "domain", "handlers")
    assert not [path for room in rooms for path in (ROOT / room).rglob("*.py") if "except*" in path.read_text()]
