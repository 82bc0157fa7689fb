"""What all tests need of the machine, said in one line before the first one fails for the lack of it."""

import signal

import pytest
from hypothesis import HealthCheck, settings

from adapters.embedded_valkey import valkey_program

# Begun in the background by a shell, these tests would hand an ignored Ctrl-C on to all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that others share makes examples slowly at times; that says nothing of the test.
settings.register_profile("shared", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only unit tests do without Valkey, which has no package for every Python and platform. The long files go first,
    so that no worker is left alone with one at the end."""
    items.sort(key=_room_of)
    if valkey_program() is None and any("unit" not in item.path.parts for item in items):
        raise pytest.UsageError(
            "these tests need valkey-server or redis-server on the PATH: there is no package of it for this Python and "
            'platform; `make test ARGS="tests/unit"` runs without'
        )


_LONG_FIRST = ("faults", "end_to_end", "integration", "unit")


def _room_of(item: pytest.Item) -> int:
    return next((place for place, room in enumerate(_LONG_FIRST) if room in item.path.parts), len(_LONG_FIRST))
