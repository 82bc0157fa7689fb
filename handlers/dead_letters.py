"""Announces letters: rows are the truth, the stream is how others hear of them. It can be refilled from the rows."""

import asyncio
from uuid import UUID

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import BadRequestError

from adapters.inbox import Letter, announcement_subject, mark_announced, unannounced_letters
from adapters.nats import MessageTooLarge, carriable, require_fits
from adapters.postgres import Database
from domain.refusals import Overloaded, Stale, Unavailable

log = structlog.get_logger()

LETTERS_MAX = 100
POLL_S = 5.0
PUBLISH_S = 2.0
PASS_S = 6.0
"""Below PostgreSQL's idle-in-transaction limit: what was announced by then is marked, the rest comes next."""
_HEADER_CHARS_MAX = 300


class Announcer:
    """Publishes every letter that was not announced yet; several may run."""

    def __init__(self, database: Database, client: Client) -> None:
        self._database = database
        self._client = client
        self._js = client.jetstream()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A letter was written."""
        self._woken.set()

    async def run(self) -> None:
        while True:
            self._woken.clear()
            try:
                while self._client.is_connected and await self._announce_some():
                    pass
            except (Unavailable, Overloaded, Stale, NatsError, TimeoutError, OSError) as error:
                log.warning("letters wait to be announced", error=type(error).__name__)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _announce_some(self) -> bool:
        async with self._database.transaction() as connection:
            letters = await unannounced_letters(connection, LETTERS_MAX)
            told: list[UUID] = []
            try:
                async with asyncio.timeout(PASS_S):
                    for letter in letters:
                        told += await self._announce(letter)
            except (NatsError, TimeoutError) as error:
                log.warning("letters wait to be announced", error=type(error).__name__)
            await mark_announced(connection, told)
        return len(told) == LETTERS_MAX

    async def _announce(self, letter: Letter) -> list[UUID]:
        """Its id; nothing where the server does not take this very letter: the others must not wait behind it."""
        subject = announcement_subject(letter.group, letter.event_type, letter.user_id)
        headers, body = headers_of(letter), letter.body
        try:
            require_fits(self._client, body, headers)
        except MessageTooLarge:
            body = b""  # its headers say which row has it whole
        try:
            await self._js.publish(subject, body, timeout=PUBLISH_S, headers=headers)
        except BadRequestError as error:
            log.error("a letter cannot be announced", letterId=str(letter.id), says=str(error))
            return []
        return [letter.id]


def headers_of(letter: Letter) -> dict[str, str]:
    """Why it died, beside its original headers; every `Nats-*` of those is carried under another name."""
    original = {
        (f"Original-{name}" if name.lower().startswith("nats-") else name): value
        for name, value in carriable(letter.headers).items()
    }
    return original | {
        "Nats-Msg-Id": f"dl:{letter.group}:{letter.event_id}:{letter.n}",
        "Dead-Letter-Id": str(letter.id),
        "Dead-Letter-Group": letter.group,
        "Dead-Letter-Reason": letter.reason,
        "Dead-Letter-Error": _one_line(f"{letter.error}: {letter.message}"),
        "Dead-Letter-Deliveries": str(letter.deliveries),
        "Dead-Letter-Stream-Sequence": str(letter.stream_sequence),
        "Dead-Letter-Time": letter.created_at.isoformat(),
    }


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() and char.isascii() else " " for char in text)[:_HEADER_CHARS_MAX]
