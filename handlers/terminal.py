"""What all commands share: how they fail, how they run, and how they find a running dev."""

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

ReadyFile = Annotated[Path | None, typer.Option(help="Ready file of `dev`; default: ready.json in its data directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="USER_SERVICE_TOKEN", help="Access token; default: who signed in by `user-service login`."),
]
DEFAULT_DIR = Path(".dev")
STOP_S_MAX = 28.0
"""Three times what a stop takes while no server answers; who asked for it sends SIGKILL after 30 seconds, as a rule."""
WORKER_STOP_S_MAX = 20.0
"""A worker's, whose supervisor has to hear of it, and to end, in the seconds that are left."""
_STACKS_MAX = 50


class Failure(Exception):
    """What a command could not do, in one line for its user."""


def leaves_of(error: BaseException) -> list[BaseException]:
    """What a group holds, however deep; any other exception is its own only leaf.

    Used instead of the starred `except`, which wraps what is raised inside of it in a group before Python 3.11.4.
    """
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves_of(inner)]
    return [error]


def run_to_end(work: Coroutine[Any, Any, None], *, foreseen: tuple[type[Exception], ...] = ()) -> None:
    """Run to the end; what is foreseen to go wrong becomes one line, also from inside a task group."""
    import structlog
    import uvloop

    if not structlog.is_configured():
        # Standard output is the command's own, for people and programs; what went wrong is in its line.
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
    try:
        uvloop.run(work)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
        leaves = leaves_of(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            sys.exit(130)
        lines = [_line(leaf, foreseen) for leaf in leaves]
        if not all(lines):
            raise
        raise Failure("; ".join(dict.fromkeys(line for line in lines if line))) from error


def _line(error: BaseException, foreseen: tuple[type[Exception], ...]) -> str | None:
    """What a foreseen failure says; None for all that is a fault of this program."""
    from nats.errors import Error as NatsError
    from nats.errors import TimeoutError as NatsTimeout

    from adapters.bus_client import BusFailure
    from adapters.migrations import MigrationRefused
    from domain.refusals import Unavailable

    if isinstance(error, Unavailable):
        which, cause = next(iter(getattr(error, "__notes__", ())), "a server"), type(error.__cause__ or error).__name__
        return f"{which} does not answer ({cause}); `user-service doctor` says more"
    if isinstance(error, NatsTimeout):
        return "NATS does not answer in time: is JetStream on, may this user ask it? `user-service doctor` says more"
    if isinstance(error, (Failure, BusFailure, MigrationRefused, NatsError, OSError, *foreseen)):
        return str(error) or type(error).__name__
    return None


def read_ready(ready_file: Path | None) -> dict[str, Any]:
    """The ready file of a running dev."""
    path = ready_file or DEFAULT_DIR / "ready.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        advice = "start it with `make run`, or name its --ready-file; for other servers set NATS_URL"
        raise Failure(f"no `user-service dev` runs here ({path.absolute()} cannot be read): {advice}") from error
    return found


def nats_url_of(ready_file: Path | None) -> str:
    """An explicit ready file, else NATS_URL, else the dev of this folder."""
    if ready_file is None and os.environ.get("NATS_URL"):
        return os.environ["NATS_URL"]
    return str(read_ready(ready_file)["natsUrl"])


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal: told how much is done, and of how much."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


class _Deadline(asyncio.Event):
    """Once it is set, the process has so many seconds to end; then it says where it hangs, and ends with exit 1."""

    def __init__(self, within_s: float) -> None:
        super().__init__()
        self._within_s = within_s

    def set(self) -> None:
        is_first = not self.is_set()
        super().set()
        if is_first:
            asyncio.get_running_loop().call_later(self._within_s - 1, _tell_what_hangs)
            try:
                faulthandler.dump_traceback_later(self._within_s, exit=True)
            except (AttributeError, OSError, RuntimeError, ValueError):  # no standard error to write to
                faulthandler.dump_traceback_later(self._within_s, exit=True, file=os.open(os.devnull, os.O_WRONLY))


def stop_on_signals(*, within_s: float | None = None) -> asyncio.Event:
    """An event that SIGINT and SIGTERM set; a process that has not ended so long after it is set ends by force."""
    stop = asyncio.Event() if within_s is None else _Deadline(within_s)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _tell_what_hangs() -> None:
    stacks = Counter("\n".join(_waits_of(task.get_coro())) for task in asyncio.all_tasks())
    for stack, tasks in stacks.most_common(_STACKS_MAX):
        typer.echo(f"{tasks} waiting, innermost last:\n{stack}", err=True)


def _waits_of(awaited: object) -> Iterator[str]:
    """Where a task waits; its own `print_stack` shows the outermost frame alone."""
    while awaited is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if getattr(awaited, f"{kind}_frame", None)), None)
        if kind is None:
            yield f"  {type(awaited).__name__}"
            return
        frame = getattr(awaited, f"{kind}_frame")
        yield f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
