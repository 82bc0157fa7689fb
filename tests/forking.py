"""Starts of the program that cost a fork: one process has loaded it all, and each start is a copy of it.

What runs is what `python -m handlers.start …` runs, without the second of processor time that loading takes. With
`EXEC=1` every start is a new interpreter, as an operator's is.
"""

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from handlers.start import ALLOCATOR
from tests.faults import mortal

PATIENCE_S = "PATIENCE_S"
"""With it what is started waits so long for Redis, and for any server that it asks how it is: a busy machine is not a
server that is away."""
_MESSAGE_MAX = 256 * 1024


class Started:
    """A running program, of which only its parent can tell how it ended: that writes it into a socket."""

    def __init__(self, pid: int, told: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._waiting = asyncio.ensure_future(self._wait(told))

    async def _wait(self, told: socket.socket) -> int:
        with told:
            status = await asyncio.get_running_loop().sock_recv(told, 16)
        self.returncode = int(status)
        return self.returncode

    async def wait(self) -> int:
        """The exit code; of a signal, its number below zero."""
        return await asyncio.shield(self._waiting)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def start(
    words: Sequence[str], *, env: Mapping[str, str], out: int, err: int, cwd: Path | None = None
) -> Started | asyncio.subprocess.Process:
    """Start `user-service …` with this environment and these descriptors."""
    if os.environ.get("EXEC") == "1":
        module = "tests.faults.mortal" if mortal.VARIABLE in env else "handlers.start"
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *words), stdout=out, stderr=err, env=env, cwd=cwd
        )
    ours, theirs = socket.socketpair()
    with theirs:
        asked = json.dumps({"words": list(words), "env": dict(env), "cwd": str(cwd or Path.cwd())}).encode()
        socket.send_fds(_loaded(), [asked], [theirs.fileno(), out, err])
    ours.setblocking(False)
    pid = int(await asyncio.get_running_loop().sock_recv(ours, 16))
    return Started(pid, ours)


@cache
def _loaded() -> socket.socket:
    """The way to a process that has loaded the program; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = str(Path(__file__).parents[1])
    with theirs:
        process = subprocess.Popen(
            (sys.executable, "-m", "tests.forking", str(theirs.fileno())),
            pass_fds=[theirs.fileno()], cwd=root, env=os.environ | {"GLIBC_TUNABLES": ALLOCATOR, "PYTHONPATH": root},
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait(timeout=10)

    atexit.register(end)
    return ours


def _serve(asked: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a start is a process of its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _MESSAGE_MAX, 3)
        if not message:
            return
        if os.fork() == 0:
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _start_and_wait(json.loads(message), *descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _start_and_wait(asked: dict[str, object], tell: int, out: int, err: int) -> None:
    pid = os.fork()
    if pid == 0:
        os.close(tell)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(asked, out, err)
    for descriptor in (out, err):
        os.close(descriptor)
    os.write(tell, str(pid).encode().ljust(16))
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # nobody is left who would want to know
        os.write(tell, str(os.waitstatus_to_exitcode(status)).encode())


def _become(asked: dict[str, object], out: int, err: int) -> None:
    """Be the program that was asked for, and end as an interpreter does."""
    code: object = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        for descriptor in (out, err):
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(asked["env"])  # type: ignore[call-overload]
        os.chdir(str(asked["cwd"]))
        words = asked["words"]
        assert isinstance(words, list)
        if words[0] in ("run", "dev"):
            os.environ["GLIBC_TUNABLES"] = ALLOCATOR  # it has that already, and does not begin again
        sys.argv = ["user-service", *words]
        import adapters.redis
        import handlers.vitals
        from handlers.start import main

        if patience := os.environ.pop(PATIENCE_S, None):
            adapters.redis.TIMEOUT_S = handlers.vitals.PROBE_S = float(patience)
        if mortal.VARIABLE in os.environ:
            mortal.make_mortal(os.environ[mortal.VARIABLE])
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as an interpreter ends
        traceback.print_exc()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    import handlers.app
    import handlers.cli
    import handlers.console.app
    import handlers.context
    import handlers.dev
    import handlers.doctor
    import handlers.supervisor

    handlers.context.device_info("", None)  # loads its tables
    _serve(socket.socket(fileno=int(sys.argv[1])))
