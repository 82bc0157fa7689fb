"""Child processes that end when we die, however we die."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

# Loaded before any fork: between fork and exec nothing may be imported.
LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def ending_with_us(stop_signal: signal.Signals, identity: Callable[[], None] | None = None) -> Callable[[], None]:
    """Return what runs in the child between fork and exec: on Linux the child is signalled when this process dies."""
    parent = os.getpid()

    def run() -> None:
        if identity is not None:
            identity()
        if sys.platform == "linux":
            # After the change of identity, which would clear it.
            LIBC.prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return run
