"""The bus as a doctor sees it: reached, with its streams and consumers, and with somebody who answers and takes."""

import asyncio
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from adapters.bus_client import BusFailure, bus_client
from adapters.server_urls import where
from adapters.settings import Settings
from adapters.streams import TAKING_GROUPS, differences, durables, stream_configs
from handlers.findings import WAIT_S, Finding, Findings, finding_of, said_of
from handlers.freshness import BEAT_S, BEATS
from handlers.measured_service import SERVICE_NAME

FULL_MAX = 0.8


async def bus_findings(settings: Settings, nats_url: str) -> Findings:
    """As the user sees it whom this address names."""
    try:
        async with bus_client(nats_url) as client:
            server = str(client.connected_server_version).strip("<>").removeprefix("nats server v")
            yield Finding("nats", True, f"{where(nats_url)}, version {server}, max_payload {client.max_payload}")
            for finding in await _streams(client, settings):
                yield finding
            yield await _requests(client)
    except BusFailure as error:
        yield finding_of("nats", error, "start it, or correct NATS_URL (host, port, TLS)")


async def _streams(client: Client, settings: Settings) -> list[Finding]:
    advice = "start `user-service run`: it makes and mends streams and consumers; see who changes them by hand"
    try:
        async with asyncio.timeout(WAIT_S):
            found = await differences(client.jetstream(), settings, TAKING_GROUPS)
    except (NatsError, TimeoutError) as error:
        advice = "enable JetStream in the server, and use a user who may ask for it: NATS_URL names the worker"
        return [Finding("jetstream", False, said_of(error), advice)]
    good = Finding("jetstream", True, "streams and consumers are as this release wants them")
    faults = [Finding(item.what, False, f"is {item.found}, not {item.wanted}", advice) for item in found]
    full = await _nearly_full(client.jetstream(), settings)
    return [*(faults or [good]), *full, await _groups(client.jetstream())]


async def _nearly_full(js: JetStreamContext, settings: Settings) -> list[Finding]:
    """Streams that will take no more before long: what is to be announced waits then."""
    found: list[Finding] = []
    async with asyncio.timeout(WAIT_S):
        for config in stream_configs(settings):
            with suppress(NotFoundError):
                info = await js.stream_info(str(config.name))
                share = info.state.bytes / (info.config.max_bytes or -1)
                if share > FULL_MAX:
                    says = f"{share:.0%} of {info.config.max_bytes} bytes are taken"
                    advice = "raise its bytes (docs/settings.md, docs/runbook.md#streamnearlyfull)"
                    found.append(Finding(f"stream {config.name} fills", False, says, advice))
    return found


async def _groups(js: JetStreamContext) -> Finding:
    """Does anybody take what waits for each group? Where nothing waits, none need run yet."""
    silent: set[str] = set()
    waiting = 0
    async with asyncio.timeout(WAIT_S):
        for durable in durables(TAKING_GROUPS):
            try:
                info = await js.consumer_info(durable.stream, durable.name)
            except NotFoundError:
                silent.add(durable.group)
                continue
            if not info.num_waiting and not info.num_ack_pending:
                silent.add(durable.group)
                waiting += info.num_pending or 0
    if not silent:
        return Finding("groups", True, f"{', '.join(TAKING_GROUPS)} take what comes")
    names = [group for group in TAKING_GROUPS if group in silent]
    says = f"nobody takes what comes for {', '.join(names)}; {waiting} messages wait"
    return Finding("groups", not waiting, says, f"start `user-service run {' '.join(names)}`, or find out why it ends")


async def _requests(client: Client) -> Finding:
    """Does anybody answer? The service's own user may not ask, but hears the beat of every process that answers; an
    operator may ask. That nobody does is no fault by itself: the service need not run yet."""
    heard = asyncio.Event()

    async def hear(message: Msg) -> None:
        if "Status" not in (message.headers or {}):  # with which the server says that nobody listens
            heard.set()

    inbox = client.new_inbox()
    for subject in (f"{BEATS}.>", inbox):
        await client.subscribe(subject, cb=hear)
    await client.publish(f"$SRV.PING.{SERVICE_NAME}", reply=inbox)
    try:
        async with asyncio.timeout(3 * BEAT_S):
            await heard.wait()
    except TimeoutError:
        return Finding("requests", True, "nobody answers them; start `user-service run requests`")
    return Finding("requests", True, "answered")
