"""A transaction with its repositories: state, events, audit rows and the kept reply commit together or not at all."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

from adapters.audit_log import AuditRow, add_audit_row
from adapters.erasure import free_address
from adapters.event_log import EventLog, Trail
from adapters.links import Links
from adapters.personal_data import PersonalData
from adapters.postgres import Connection, Database
from adapters.sessions import Sessions
from adapters.two_factor import SecondFactors
from adapters.users import Users
from contracts.wire import Wire
from domain.refusals import Refusal
from domain.user import User

Outcome = Wire | Refusal
KeepReply = Callable[[Connection, Outcome], Awaitable[None]]
Announce = Callable[[Mapping[UUID, int]], None]


class UnitOfWork:
    """What a use case changes together. Leaving the block without `commit` takes everything back."""

    def __init__(
        self,
        connection: Connection,
        personal: PersonalData,
        trail: Trail,
        keep_reply: KeepReply | None,
        *,
        one_statement: bool,
    ) -> None:
        self.connection = connection
        self._personal = personal
        self._trail = trail
        self._keep_reply = keep_reply
        # One statement is a transaction of its own; a reply that is to be kept would be a second one.
        self._transaction = None if one_statement and keep_reply is None else connection.transaction()
        self.users = Users(connection, personal, EventLog(personal, trail))
        self.sessions = Sessions(connection)
        self.links = Links(connection)
        self.factors = SecondFactors(connection)
        self.commit_begun = self._transaction is None

    async def begin(self) -> None:
        if self._transaction is not None:
            await self._transaction.start()

    async def audit(self, row: AuditRow) -> None:
        """Write an audit row that has no event."""
        await add_audit_row(self.connection, self._personal, self._trail, row)

    async def end_sessions(
        self, user: User, *, reason: str, at: datetime, only: Sequence[UUID] | None = None, but: UUID | None = None
    ) -> list[UUID]:
        """End sessions of a locked user, all that live unless `only` names some; returns those that this ended.

        The one way in which a session ends early: every process refuses its tokens once the user is saved. Where all
        of them end, a sign-in that is half-way through ends as well.
        """
        if only is None:
            await self.factors.void_challenges(user.id)
        wanted = await self.sessions.unended_of(user.id, at=at) if only is None else only
        ended = await self.sessions.end(user.id, [id for id in wanted if id != but], reason=reason, at=at)
        for session_id in ended:
            user.session_ended(session_id, reason=reason, at=at)
        return ended

    async def end_pending(self, user: User, *, by: str, at: datetime) -> None:
        """End a locked account whose address nobody has shown to be theirs, save it, and free the address at once."""
        await self.end_sessions(user, reason="account_deleted", at=at)
        await self.links.void_all_but(user.id, at=at)
        user.delete(by=by, at=at)
        await self.users.save(user)
        await free_address(self.connection, user.id)

    async def commit(self, outcome: Outcome) -> None:
        """Make everything true at once; `outcome` is what the caller will be told, also when it asks again."""
        if self._keep_reply is not None:
            await self._keep_reply(self.connection, outcome)
        self.commit_begun = True
        if self._transaction is not None:
            await self._transaction.commit()

    async def roll_back(self) -> None:
        if self._transaction is not None:
            await self._transaction.rollback()


@asynccontextmanager
async def unit_of_work(
    database: Database,
    personal: PersonalData,
    trail: Trail,
    *,
    keep_reply: KeepReply | None = None,
    announce: Announce,
    one_statement: bool = False,
) -> AsyncIterator[UnitOfWork]:
    """One transaction; `announce` is told the users that changed, with their versions, right after the commit.

    `one_statement` promises that the block writes by a single one: it then needs no round trips around it.
    """
    async with database.connection() as connection:
        work = UnitOfWork(connection, personal, trail, keep_reply, one_statement=one_statement)
        await work.begin()
        try:
            yield work
        finally:
            if work.commit_begun:
                # Also when the answer to COMMIT was cut off: it may have come about, and a drop too many does no harm.
                if work.users.touched:
                    announce(work.users.touched)
            elif not connection.is_closed():
                await work.roll_back()
