"""From a message to a reply: bound, deadline, limits, caller, idempotency, the use case, and the mapping of refusals.

The micro service's callback only admits a request into a bounded set of tasks, or answers `OVERLOADED`; no exception
ever reaches it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, ServiceConfig
from structlog.contextvars import bind_contextvars

from adapters.idempotency import Kept
from adapters.limits import LimitReached, Window
from adapters.nats import LEAVE_S, MessageTooLarge, send, settle
from adapters.telemetry import release
from adapters.tracing import span
from contracts.operations import Even, Limit, Operation
from contracts.wire import Error, ErrorCode, Meta, Wire
from domain.refusals import (
    BadToken,
    DeadlineExceeded,
    Overloaded,
    PayloadTooLarge,
    Refusal,
    Stale,
)
from handlers.answer_steps import AnswerSteps
from handlers.callers import authenticate
from handlers.context import Call, Context, Handler
from handlers.endings import let_end
from handlers.envelope import (
    error_of,
    failure,
    header,
    idempotency_key_of,
    read_body,
    read_call,
    replayed_success,
    request_id_of,
    success,
)
from handlers.measured_service import SERVICE_NAME, Figures, MeasuredService
from handlers.once import Once, Work

log = structlog.get_logger()

QUEUE = "user-service"
TRIES_MAX = 3
TIDYING_S = 0.1
"""So long after its deadline a cancelled request may still answer by itself; one that hangs is answered for then."""


class TableMismatch(Exception):
    """An operation without a handler, or a handler without an operation."""


def pair(
    operations: Sequence[Operation], handlers: Mapping[type[Wire], Handler]
) -> dict[str, tuple[Operation, Handler]]:
    """Every operation with its handler, by subject; raises `TableMismatch` for a row or a function left over."""
    wanted = {operation.request for operation in operations}
    faults = [f"{operation.subject} has no handler" for operation in operations if operation.request not in handlers]
    faults += [f"{request.__name__} is no operation's request" for request in handlers if request not in wanted]
    if faults:
        raise TableMismatch("; ".join(sorted(faults)))
    return {operation.subject: (operation, handlers[operation.request]) for operation in operations}


@dataclass(slots=True)
class Asked:
    """A request on its way to its one answer."""

    operation: Operation
    message: Msg
    began: float
    is_answered: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply before it is measured and sent."""

    body: bytes
    headers: dict[str, str]
    error: Error | None = None


class Dispatcher:
    """Serves a table of operations on one connection."""

    def __init__(
        self,
        ctx: Context,
        client: Client,
        table: Mapping[str, tuple[Operation, Handler]],
        once: Once,
        steps: AnswerSteps,
    ) -> None:
        self._ctx = ctx
        self._steps = steps
        self._client = client
        self._table = table
        self._once = once
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._figures = {subject: Figures() for subject in table}
        self._service = MeasuredService(
            client,
            ServiceConfig(
                name=SERVICE_NAME,
                version=release(),
                description="Accounts, authentication, sessions and profiles over NATS",
                queue_group=QUEUE,
            ),
            self._figures,
        )

    async def start(self) -> None:
        """Subscribe every operation; ready when this returns."""
        await self._service.start()
        for operation, handler in self._table.values():
            await self._service.add_endpoint(
                EndpointConfig(
                    name=operation.name,
                    subject=operation.subject,
                    handler=self._admitting(operation, handler),
                    queue_group=QUEUE,
                    metadata={
                        "schema": operation.schema_urn,
                        "route": operation.route,
                        "caller": str(operation.caller.value),
                        "limit": operation.limit.value,
                    },
                )
            )
        await settle(self._client)

    async def stop(self, *, within_s: float) -> None:
        """Refuse what comes, answer what was taken in, then leave; what does not end in time is cancelled."""
        until = asyncio.get_running_loop().time() + within_s
        self._refusing = True
        if self._client.is_connected:
            await self._service.drain_endpoints()
        await let_end(self._tasks, until=until)
        if self._client.is_connected:
            with suppress(NatsError, TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._service.stop()

    def _admitting(self, operation: Operation, handler: Handler) -> Callable[[Request], Awaitable[None]]:
        async def admit(request: Request) -> None:
            message = request._msg  # noqa: SLF001 - micro hides the reply subject, which tells who asks
            if not message.reply:
                return  # not a request: there is nobody to answer
            asked = Asked(operation, message, time.perf_counter())
            if self._refusing or len(self._tasks) >= self._ctx.settings.requests_max:
                await self._finish(asked, self._refuse(message.headers or {}, Overloaded()))
                return
            self._spawn(self._handle(asked, handler))
            self._ctx.metrics.in_work.set(len(self._tasks))

        return admit

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, asked: Asked, handler: Handler) -> None:
        """The edge: whatever happens, one answer goes out, and what was not foreseen is logged once, here."""
        operation, message = asked.operation, asked.message
        headers = message.headers or {}
        try:
            call = read_call(
                headers,
                subject=operation.subject,
                reply=message.reply,
                ms_max=self._ctx.settings.request_ms_max,
                now=self._ctx.now(),
            )
            headers = headers | {"Request-Id": call.request_id}
            bind_contextvars(requestId=call.request_id)
            with self._answered_for(asked, headers, at=call.deadline + TIDYING_S):
                async with asyncio.timeout_at(call.deadline):
                    self._require_time(operation, call)
                    answer = await self._answer_traced(operation, handler, call, message)
                    await self._even_out(asked, answer)
        except Refusal as refusal:
            answer = self._refuse(headers, refusal)
        except TimeoutError:
            answer = self._refuse(headers, DeadlineExceeded())
        except asyncio.CancelledError:
            answer = self._refuse(headers, Overloaded())  # the process stops: another will do it
        except Exception:
            log.exception("request failed", subject=operation.subject, requestId=request_id_of(headers))
            answer = self._fail(headers)
        await self._finish(asked, answer)

    def _must_be_even(self, operation: Operation, *, refused: bool) -> bool:
        match operation.even:
            case Even.NEVER:
                return False
            case Even.REFUSALS:
                return refused
            case Even.ALWAYS:
                return True
            case Even.WHERE_HIDDEN:
                return self._ctx.settings.hide_registered_emails

    def _require_time(self, operation: Operation, call: Call) -> None:
        """Where the time of a reply must tell nothing, a deadline must not tell how long the work took either.

        Raises `DeadlineExceeded` before any work.
        """
        left_s = call.deadline - asyncio.get_running_loop().time()
        if self._must_be_even(operation, refused=True) and left_s < self._steps.needed_s(operation):
            raise DeadlineExceeded

    async def _even_out(self, asked: Asked, answer: Answer) -> None:
        """Hold a reply back until its time tells nothing of what was found: it goes out at whole steps from its
        request's arrival, so that a step that is too short for a busy machine still tells next to nothing."""
        if self._must_be_even(asked.operation, refused=answer.error is not None):
            with suppress(asyncio.CancelledError):  # at a stop: the work is done, and its reply goes out at once
                await self._steps.hold_back(asked.operation, time.perf_counter() - asked.began)

    @contextmanager
    def _answered_for(self, asked: Asked, headers: Mapping[str, str], *, at: float) -> Iterator[None]:
        """Tell the caller of the deadline at this time, though the block still hangs over what it has to put in order:
        a rollback waits as long as a statement where PostgreSQL's link is dead."""

        def tell() -> None:
            self._spawn(self._finish(asked, self._refuse(headers, DeadlineExceeded())))

        timer = asyncio.get_running_loop().call_at(at, tell)
        try:
            yield
        finally:
            timer.cancel()

    async def _answer_traced(self, operation: Operation, handler: Handler, call: Call, message: Msg) -> Answer:
        """The answer, in a span of its request where traces are on; what the request changes continues that span."""
        with span("server", operation.subject, parent=call.traceparent) as around:
            if around is None:
                return await self._answer(operation, handler, call, message)
            answer = await self._answer(operation, handler, replace(call, traceparent=around.traceparent), message)
            around.note("code", answer.error.code if answer.error else "OK")
            return answer

    async def _answer(self, operation: Operation, handler: Handler, call: Call, message: Msg) -> Answer:
        ctx, headers = self._ctx, message.headers or {}
        if call.client_ip is None:
            ctx.metrics.without_client_ip.inc()
        request = read_body(operation, message.data)
        try:
            caller = await authenticate(ctx, operation, header(headers, "Authorization"))
        except BadToken:
            kept = await self._kept_before(operation, headers, message.data)
            if kept is None:
                raise
            call.reply_headers["Request-Id"] = call.request_id
            return self._replay(kept, call)
        call = replace(call, caller=caller)
        if caller is not None:
            bind_contextvars(userId=str(caller.user_id))
        counted = await ctx.limits.reserve(_windows(ctx, operation, call))
        key = idempotency_key_of(headers) if operation.writes else None
        call.reply_headers.update({"Request-Id": call.request_id, **counted.headers})
        for _ in range(TRIES_MAX):
            try:
                if key is None:
                    reply = await handler(ctx, call, request)
                else:
                    work = Work(operation, handler, call, request, message.data)
                    done = await self._once.do(key, work)
                    if isinstance(done, Kept):
                        return self._replay(done, call)
                    reply = done
                return Answer(success(reply, self._meta(call.request_id)), call.reply_headers)
            except Stale:
                continue  # what it relied on changed before the lock: decide again
            except Refusal as refusal:
                answer = self._refuse(call.reply_headers, refusal)
                return replace(answer, headers=call.reply_headers | answer.headers)
        raise Overloaded

    async def _kept_before(self, operation: Operation, headers: Mapping[str, str], body: bytes) -> Kept | None:
        """The session may have been ended by this very request, whose reply was lost: its first reply is still due."""
        key = idempotency_key_of(headers) if operation.writes and not operation.holds_secrets else None
        token = (header(headers, "Authorization") or "").partition(" ")[2].strip()
        if key is None or not token:
            return None
        claims = self._ctx.mint.read_access(token, at=self._ctx.now())
        return await self._once.find(key, operation, claims.user_id, body)

    def _replay(self, kept: Kept, call: Call) -> Answer:
        headers = call.reply_headers | {"Idempotent-Replayed": "true"}
        meta = self._meta(call.request_id)
        if kept.success:
            return Answer(replayed_success(kept.body, meta), headers)
        error = Error.model_validate_json(kept.body)
        return Answer(failure(kept.body, meta), headers | _error_headers(error), error)

    def _meta(self, request_id: str) -> Meta:
        return Meta(timestamp=self._ctx.now(), request_id=request_id)

    def _refuse(self, headers: Mapping[str, str], refusal: Refusal) -> Answer:
        extra = refusal.headers if isinstance(refusal, LimitReached) else {}
        return self._error(headers, error_of(refusal), extra)

    def _fail(self, headers: Mapping[str, str]) -> Answer:
        code = ErrorCode.INTERNAL_ERROR
        return self._error(headers, Error(code=code.name, message=code.message), {})

    def _error(self, headers: Mapping[str, str], error: Error, extra: Mapping[str, str]) -> Answer:
        request_id = request_id_of(headers)
        body = failure(error.model_dump_json(by_alias=True, exclude_none=True), self._meta(request_id))
        return Answer(body, {"Request-Id": request_id, **extra, **_error_headers(error)}, error)

    async def _finish(self, asked: Asked, answer: Answer) -> None:
        """Send, count and log, once."""
        if asked.is_answered:
            return
        asked.is_answered = True
        operation, reply_to = asked.operation, asked.message.reply
        try:
            await send(self._client, reply_to, answer.body, answer.headers)
        except MessageTooLarge:
            answer = self._refuse(answer.headers, PayloadTooLarge())
            await send(self._client, reply_to, answer.body, answer.headers)
        seconds = time.perf_counter() - asked.began
        number = ErrorCode[answer.error.code].number if answer.error else 200
        figures = self._figures[operation.subject]
        figures.requests += 1
        figures.nanoseconds += int(seconds * 1e9)
        if answer.error:
            figures.errors += 1
            figures.last_error = answer.error.code
        metrics = self._ctx.metrics
        if answer.error and answer.error.code == ErrorCode.OVERLOADED.name:
            metrics.shed.inc()
        metrics.requests.labels("NATS", operation.subject, str(number)).inc()
        metrics.request_seconds.labels("NATS", operation.subject).observe(seconds)
        metrics.in_work.set(len(self._tasks))
        log.info(
            "request",
            subject=operation.subject,
            requestId=answer.headers["Request-Id"],
            code=answer.error.code if answer.error else "OK",
            durationMs=round(seconds * 1000, 1),
        )


def _error_headers(error: Error) -> dict[str, str]:
    number = ErrorCode[error.code].number
    return {"Nats-Service-Error": error.message, "Nats-Service-Error-Code": str(number)}


def _windows(ctx: Context, operation: Operation, call: Call) -> tuple[Window, ...]:
    """What the dispatcher counts by itself; sign-in and mail are counted where their failure is known."""
    if operation.limit in {Limit.NONE, Limit.LOGIN, Limit.MAIL}:
        return ()
    # Codes are counted by account where they are looked at; whoever sends nonsense counts as everybody does.
    limit = Limit.GENERAL if operation.limit is Limit.CODE else operation.limit
    rates, name = ctx.settings, limit.value
    if call.caller is not None:
        rate = rates.limit_upload if operation.limit is Limit.UPLOAD else rates.limit_general
        who = str(call.caller.user_id)
    elif call.client_ip is None:
        rate, who = rates.limit_bus_client, call.source
    else:
        rate, who = (rates.limit_register if operation.limit is Limit.REGISTER else rates.limit_general), call.source
    return (Window(name, who, rate.tries_max, rate.window_s),)
