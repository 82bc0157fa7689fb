"""Pictures from strangers, decoded where they can do no harm: each in a process of its own that ends with it.

The process holds nothing of ours, neither settings nor connections, and is bounded in memory, processor time, files
and real time. Whatever it dies of is a refusal of this one picture.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from domain.refusals import Overloaded

log = structlog.get_logger()

AT_ONCE_MAX = 2
WAITING_MAX = 16
DEADLINE_S = 15.0
SIZES = (256, 64)
SQUARE_BYTES_MAX = 128 * 1024
_PROGRAM = Path(__file__).with_name("picture_worker.py")
_HEAD_BYTES_MAX = 200
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What an interpreter may need to find its own libraries; all else of our environment holds secrets."""


class BadPicture(Exception):
    """It is none that we take; `code` says why: `not_a_picture`, `other_type`, `too_many_pixels` or `damaged`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Pictures:
    """Few at once, some in waiting, no more."""

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(AT_ONCE_MAX)
        self._inside = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place from before a picture is read into memory until it is done; raises `Overloaded`."""
        if self._inside >= AT_ONCE_MAX + WAITING_MAX:
            raise Overloaded
        self._inside += 1
        try:
            async with self._permits:
                yield
        finally:
            self._inside -= 1

    async def squares(self, content: bytes, content_type: str) -> dict[int, bytes]:
        """The picture as a square of each size, in WebP; raises `BadPicture` or `Overloaded`."""
        process = await _start(content_type)
        try:
            async with asyncio.timeout(DEADLINE_S):
                said = await _exchange(process, content)
                status = await process.wait()
        except TimeoutError:
            log.warning("a picture took too long")
            raise Overloaded from None
        finally:
            await _end(process)
        if status == -signal.SIGKILL:
            raise Overloaded  # by somebody else: memory was short, say
        if status != 0:
            log.info("a picture could not be decoded", status=status)
            raise BadPicture("damaged")
        return _squares_in(said)


async def _start(content_type: str) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(_PROGRAM), content_type),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        log.warning("no process for a picture", error=type(error).__name__)
        raise Overloaded from error


async def _exchange(process: Process, content: bytes) -> bytes:
    """Write the picture, read what is said of it, no more than a good one would say."""
    assert process.stdin  # noqa: S101 - both are pipes
    assert process.stdout  # noqa: S101
    with suppress(ConnectionError):  # it may refuse the picture before it has read it all
        process.stdin.write(content)
        await process.stdin.drain()
        process.stdin.close()
    said, said_max = bytearray(), _HEAD_BYTES_MAX + len(SIZES) * SQUARE_BYTES_MAX
    while part := await process.stdout.read(64 * 1024):
        said += part
        if len(said) > said_max:
            process.kill()
            raise BadPicture("damaged")
    return bytes(said)


async def _end(process: Process) -> None:
    """However we leave, nothing is left running."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _squares_in(said: bytes) -> dict[int, bytes]:
    """What it said, held against what it can say: a picture may have come to rule over it."""
    head, _, body = said.partition(b"\n")
    try:
        found = json.loads(head[:_HEAD_BYTES_MAX])
        if "refused" in found:
            raise BadPicture(str(found["refused"]))
        first, second = (int(size) for size in found["bytes"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadPicture("damaged") from error
    squares = {SIZES[0]: body[:first], SIZES[1]: body[first:]}
    if len(body) != first + second or not all(_is_bare_webp(square) for square in squares.values()):
        raise BadPicture("damaged")
    return squares


def _is_bare_webp(square: bytes) -> bool:
    """One WebP file from the first byte to the last, with chunks of pixels alone."""
    if len(square) > SQUARE_BYTES_MAX or square[:4] != b"RIFF" or square[8:12] != b"WEBP":
        return False
    at = 12
    while at + 8 <= len(square):
        if square[at : at + 4] not in {b"VP8 ", b"VP8L", b"VP8X", b"ALPH"}:
            return False
        size = int.from_bytes(square[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return at == len(square) == int.from_bytes(square[4:8], "little") + 8
