"""A program that is killed at a point with a name: before or after a function of its own is called.

`DIES_AT="after handlers.delivery add_letter"`; a method is named as `Class.method`. Nothing of this is in the program.
"""

import asyncio
import functools
import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

VARIABLE = "DIES_AT"


def make_mortal(point: str) -> None:
    """Have this process killed by SIGKILL where the point says, the first time it comes there with something to do."""
    when, module, name = point.split()
    owner: Any = importlib.import_module(module)
    *outer, name = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, _dying(getattr(owner, name), when))


def _dying(function: Callable[..., Any], when: str) -> Callable[..., Any]:
    answers = function.__annotations__.get("return") not in {None, "None"}

    @functools.wraps(function)
    async def act(*args: object, **options: object) -> object:
        is_idle = bool(args) and args[-1] == []  # it polls, and there is nothing to be done
        if when == "before" and not is_idle:
            _die()
        result = await function(*args, **options)
        if when == "after" and not is_idle and (result or not answers):
            _die()
        return result

    assert asyncio.iscoroutinefunction(function), function
    return act


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from handlers.start import main

    make_mortal(os.environ[VARIABLE])
    main()
