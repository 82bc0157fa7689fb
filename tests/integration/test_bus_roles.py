"""What each role may and may not do on a real nats-server with the configuration that we ship."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig

from adapters.audit_heads import read_heads
from adapters.embedded import Addresses, EmbeddedServers
from adapters.embedded_bus import inbox_prefix
from adapters.streams import stream_configs
from tests.builders import settings_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROLES = ("worker", "gateway", "admin-gateway", "listener", "operator", "dev")
OTHERS = ROLES[1:]
OURS = ("email", "audit", "cache", "email-replay", "audit-replay", "cache-replay")


class Role:
    """A connection of one role that remembers what the server refused it."""

    def __init__(self) -> None:
        self.client = Client()
        self._refusals: list[str] = []

    async def connect(self, url: str, prefix: str) -> None:
        await self.client.connect(url, inbox_prefix=prefix.encode(), error_cb=self._note)

    async def _note(self, error: Exception) -> None:
        self._refusals.append(str(error))

    async def refusals(self) -> list[str]:
        """What the server has refused since the last call."""
        await _settled(self.client)
        seen, self._refusals = self._refusals, []
        return [refusal for refusal in seen if "permissions violation" in refusal]

    async def may_publish(self, subject: str) -> bool:
        await self.client.publish(subject, b"")
        return not await self.refusals()

    async def may_subscribe(self, subject: str, queue: str = "") -> bool:
        subscription = await self.client.subscribe(subject, queue=queue)
        refused = await self.refusals()
        if not refused:
            await subscription.unsubscribe()
        return not refused


async def _settled(client: Client) -> None:
    """Wait until the server has read all we wrote: nats-py writes the ping of a flush before what is buffered."""
    await client.flush()
    await client.flush()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def addresses(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Addresses]:
    directory: Path = tmp_path_factory.mktemp("roles")
    async with EmbeddedServers(directory, log=lambda _line: None) as servers:
        yield servers.addresses


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def roles(addresses: Addresses) -> AsyncIterator[dict[str, Role]]:
    urls = {
        "worker": addresses.nats_worker_url,
        "gateway": addresses.nats_urls["gateway"],
        "admin-gateway": addresses.nats_urls["adminGateway"],
        "listener": addresses.nats_urls["listener"],
        "operator": addresses.nats_urls["operator"],
        "dev": addresses.nats_url,
    }
    connected = {name: Role() for name in ROLES}
    for name, role in connected.items():
        await role.connect(urls[name], inbox_prefix(name))
    await _serve(connected["worker"].client)
    yield connected
    for role in connected.values():
        await role.client.close()


async def _serve(worker: Client) -> None:
    """The streams, three events and an endpoint that answers, as the service has them."""
    streams = worker.jetstream()
    await streams.add_stream(name="USER_EVENTS", subjects=["users.events.>"])
    await streams.add_stream(name="USER_DEAD_LETTERS", subjects=["users.dead-letters.>"])
    await streams.add_stream(name="USER_REPLAYS", subjects=["users.replay.>"])
    await streams.add_stream(name="USER_AUDIT_SEALS", subjects=["users.audit-seals"])
    for bucket in stream_configs(settings_of("postgresql://127.0.0.1/none"))[-2:]:
        await streams.add_stream(bucket)
    for number in range(3):
        await streams.publish(f"users.events.v1.UserRegistered.{number}", b"{}")
    await streams.add_consumer("USER_EVENTS", ConsumerConfig(durable_name="email"))

    async def answer(message: Msg) -> None:
        await message.respond(b"answer")

    await worker.subscribe("users.v1.>", queue="user-service", cb=answer)
    await worker.subscribe("$SRV.>", cb=answer)
    await _settled(worker)


async def test_nobody_connects_without_a_password(addresses: Addresses) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", addresses.nats_port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    assert b"Authorization Violation" in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("queue", ["", "another"])
async def test_a_worker_hears_requests_in_the_services_queue_alone(roles: dict[str, Role], queue: str) -> None:
    assert not await roles["worker"].may_subscribe("users.v1.>", queue)
    assert not await roles["worker"].may_subscribe("users.v1.auth.login", queue)
    assert await roles["worker"].may_subscribe("users.v1.auth.login", "user-service")


@pytest.mark.parametrize("role", ["gateway", "admin-gateway", "operator", "dev"])
@pytest.mark.parametrize("subject", ["users.v1.me.get", "$SRV.PING"])
async def test_requests_and_discovery_are_answered(roles: dict[str, Role], role: str, subject: str) -> None:
    reply = await roles[role].client.request(subject, b"", timeout=5)
    assert reply.data == b"answer"


@pytest.mark.parametrize("role", ["admin-gateway", "operator", "dev"])
async def test_admin_requests_are_answered_to(roles: dict[str, Role], role: str) -> None:
    reply = await roles[role].client.request("users.v1.admin.users.list", b"", timeout=5)
    assert reply.data == b"answer"


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("gateway", "users.v1.admin.users.list"),
        ("listener", "users.v1.me.get"),
        ("listener", "$SRV.PING"),
        *((role, "users.events.v1.UserRegistered.1") for role in OTHERS),
        *((role, "users.dead-letters.email.UserRegistered.1") for role in OTHERS),
        *((role, "users.replay.email.UserRegistered.1") for role in OTHERS),
        *((role, "users.invalidate.1") for role in OTHERS),
        *((role, "users.audit-seals") for role in OTHERS),
        *((role, "$JS.API.STREAM.PURGE.USER_AUDIT_SEALS") for role in OTHERS),
        *((role, "$JS.API.STREAM.MSG.DELETE.USER_AUDIT_SEALS") for role in OTHERS),
        *((role, "$JS.API.STREAM.MSG.GET.USER_AUDIT_SEALS") for role in ("gateway", "admin-gateway", "listener")),
        *((role, "$JS.API.STREAM.CREATE.OTHER") for role in OTHERS),
        *((role, "$JS.API.STREAM.UPDATE.USER_EVENTS") for role in OTHERS),
        *((role, "$JS.API.STREAM.PURGE.USER_EVENTS") for role in OTHERS),
        *((role, "$JS.API.STREAM.DELETE.USER_EVENTS") for role in OTHERS),
        *((role, "$JS.API.STREAM.MSG.DELETE.USER_EVENTS") for role in OTHERS),
        *((role, "$O.user-avatars.C.1") for role in OTHERS),
        *((role, "$O.user-avatar-uploads.C.1") for role in ("listener", "operator")),
        *(
            (role, f"$JS.API.{asked}")
            for role in ("gateway", "admin-gateway")
            for asked in (
                "STREAM.INFO.OBJ_user-avatar-uploads",
                "STREAM.MSG.GET.OBJ_user-avatar-uploads",
                "DIRECT.GET.OBJ_user-avatar-uploads",
                "CONSUMER.CREATE.OBJ_user-avatar-uploads",
                "STREAM.PURGE.OBJ_user-avatar-uploads",
            )
        ),
        *((role, f"_INBOX.{other}.1") for role in OTHERS for other in ROLES),
        ("worker", "_INBOX.gateway.1"),
        ("worker", "users.v1.me.get"),
        ("gateway", "$JS.API.CONSUMER.DURABLE.CREATE.USER_EVENTS.mine"),
        ("listener", "$JS.API.CONSUMER.DURABLE.CREATE.USER_DEAD_LETTERS.mine"),
        ("listener", "$JS.API.STREAM.MSG.GET.USER_DEAD_LETTERS"),
        ("operator", "$JS.API.CONSUMER.DURABLE.CREATE.USER_REPLAYS.mine"),
        ("dev", "$JS.API.CONSUMER.DURABLE.CREATE.USER_REPLAYS.mine"),
    ],
)
async def test_may_not_publish(roles: dict[str, Role], role: str, subject: str) -> None:
    assert not await roles[role].may_publish(subject)


@pytest.mark.parametrize("role", ["listener", "operator", "dev"])
@pytest.mark.parametrize("name", OURS)
async def test_our_consumers_are_out_of_reach(roles: dict[str, Role], role: str, name: str) -> None:
    for subject in (
        f"$JS.API.CONSUMER.CREATE.USER_EVENTS.{name}",
        f"$JS.API.CONSUMER.CREATE.USER_EVENTS.{name}.users.events.v1.UserRegistered.1",
        f"$JS.API.CONSUMER.DURABLE.CREATE.USER_EVENTS.{name}",
        f"$JS.API.CONSUMER.MSG.NEXT.USER_EVENTS.{name}",
        f"$JS.API.CONSUMER.DELETE.USER_EVENTS.{name}",
        f"$JS.ACK.USER_EVENTS.{name}.1.1.1.1.0",
    ):
        assert not await roles[role].may_publish(subject), subject


@pytest.mark.parametrize("role", OTHERS)
async def test_may_not_listen_in(roles: dict[str, Role], role: str) -> None:
    foreign = [f"_INBOX.{other}.>" for other in ROLES[:-1] if other != role]
    everything = [] if role == "dev" else ["_INBOX.>", "_INBOX.*.>"]
    shared = ("users.>", "users.v1.>", "users.events.>", "$SRV.>", "$JS.API.>", "$O.>")
    for subject in (*foreign, *everything, ">", *shared):
        assert not await roles[role].may_subscribe(subject), subject
    assert not await roles[role].may_subscribe("users.v1.>", "user-service")


@pytest.mark.parametrize("role", OTHERS)
async def test_every_role_hears_invalidations(roles: dict[str, Role], role: str) -> None:
    subscription = await roles[role].client.subscribe("users.invalidate.>")
    await _settled(roles[role].client)
    await roles["worker"].client.publish("users.invalidate.7", b"{}")
    assert (await subscription.next_msg(timeout=5)).subject == "users.invalidate.7"
    await subscription.unsubscribe()


async def test_the_default_inbox_of_dev_does_not_show_the_replies_of_others(roles: dict[str, Role]) -> None:
    subscription = await roles["dev"].client.subscribe("_INBOX.>")
    await _settled(roles["dev"].client)
    for role in ("gateway", "admin-gateway", "operator", "dev"):
        await roles[role].client.request("users.v1.me.get", b"", timeout=5)
    await _settled(roles["dev"].client)
    assert subscription.pending_msgs == 1  # its own, asked for last
    await subscription.unsubscribe()


@pytest.mark.parametrize("role", ["listener", "operator", "dev"])
async def test_a_durable_of_its_own_reads_events(roles: dict[str, Role], role: str) -> None:
    streams = roles[role].client.jetstream(timeout=5)
    found = await streams.pull_subscribe("users.events.>", durable=f"{role}-found")  # looks the stream up by subject
    named = await streams.pull_subscribe("users.events.v1.UserRegistered.*", f"{role}-named", stream="USER_EVENTS")
    for subscription in (found, named):
        messages = await subscription.fetch(3, timeout=5)
        assert len(messages) == 3
        for message in messages:
            await message.ack_sync(timeout=5)
    assert (await streams.consumer_info("USER_EVENTS", f"{role}-found")).num_ack_pending == 0
    await streams.delete_consumer("USER_EVENTS", f"{role}-found")
    assert not await roles[role].refusals()


@pytest.mark.parametrize("role", ["operator", "dev"])
async def test_an_operator_looks_at_every_stream(roles: dict[str, Role], role: str) -> None:
    streams = roles[role].client.jetstream(timeout=5)
    names = {info.config.name for info in await streams.streams_info()}
    assert {"USER_EVENTS", "USER_DEAD_LETTERS", "USER_REPLAYS"} <= names
    assert (await streams.consumer_info("USER_EVENTS", "email")).name == "email"
    assert [info.name for info in await streams.consumers_info("USER_EVENTS")]
    assert (await streams.get_msg("USER_EVENTS", seq=1)).subject == "users.events.v1.UserRegistered.0"
    assert not await roles[role].refusals()


@pytest.mark.parametrize("role", ["worker", "operator", "dev"])
async def test_an_operator_reads_what_a_worker_has_published_of_the_audit_log(
    roles: dict[str, Role], role: str
) -> None:
    await roles["worker"].client.jetstream(timeout=5).publish("users.audit-seals", b"{}")
    read = [head async for _, head in read_heads(roles[role].client.jetstream(timeout=5))]
    assert read
    assert set(read) == {None}
    assert not await roles[role].refusals()


@pytest.mark.parametrize("role", ["gateway", "admin-gateway"])
@pytest.mark.parametrize("asked", ["$JS.API.STREAM.NAMES", "$JS.API.INFO", "$JS.API.STREAM.INFO.USER_EVENTS"])
async def test_a_gateway_cannot_have_jetstream_write_an_event(roles: dict[str, Role], role: str, asked: str) -> None:
    """JetStream answers wherever a request says, past the permissions of who asked."""
    streams = roles["worker"].client.jetstream(timeout=5)
    before = (await streams.stream_info("USER_EVENTS")).state.last_seq
    await roles[role].client.publish(asked, b"", reply="users.events.v1.UserRoleChanged.1")
    assert not await roles[role].may_publish(asked)
    assert (await streams.stream_info("USER_EVENTS")).state.last_seq == before


@pytest.mark.parametrize("role", ["gateway", "admin-gateway", "dev"])
async def test_a_gateway_puts_pictures_aside(roles: dict[str, Role], role: str) -> None:
    streams = roles["worker"].client.jetstream(timeout=5)
    for subject in (f"$O.user-avatar-uploads.C.{role}", f"$O.user-avatar-uploads.M.{role}"):
        assert await roles[role].may_publish(subject)
        assert (await streams.get_last_msg("OBJ_user-avatar-uploads", subject)).subject == subject


@pytest.mark.parametrize("role", ["gateway", "admin-gateway"])
@pytest.mark.parametrize("target", ["users.events.v1.UserRoleChanged.1", "$O.user-avatars.M.1", "_INBOX.operator.1"])
async def test_what_a_gateway_puts_is_acknowledged_nowhere_by_jetstream(
    roles: dict[str, Role], role: str, target: str
) -> None:
    """An acknowledgement goes wherever a message says, past the permissions of who sent it."""
    streams = roles["worker"].client.jetstream(timeout=5)
    names = ("USER_EVENTS", "OBJ_user-avatars", "OBJ_user-avatar-uploads")
    before = [(await streams.stream_info(name)).state.last_seq for name in names]
    listening = await roles["operator"].client.subscribe("_INBOX.operator.1")
    await roles["operator"].refusals()
    await roles[role].client.publish("$O.user-avatar-uploads.C.1", b"chunk", reply=target)
    assert not await roles[role].refusals()
    await _settled(roles["operator"].client)
    after = [(await streams.stream_info(name)).state.last_seq for name in names]
    assert after == [before[0], before[1], before[2] + 1]
    assert not listening.pending_msgs
    await listening.unsubscribe()


@pytest.mark.parametrize("queue", ["", "another"])
async def test_a_worker_sees_what_is_put_aside_in_the_services_queue_alone(roles: dict[str, Role], queue: str) -> None:
    assert not await roles["worker"].may_subscribe("$O.user-avatar-uploads.>", queue)
    assert await roles["worker"].may_subscribe("$O.user-avatar-uploads.>", "user-service")


async def test_a_worker_answers_a_request_once(roles: dict[str, Role]) -> None:
    """The second answer is refused, so a reply subject cannot be kept for later."""
    worker, gateway = roles["worker"], roles["gateway"]
    inbox = gateway.client.new_inbox()
    subscription = await gateway.client.subscribe(inbox)
    await gateway.client.publish("users.v1.me.get", b"", reply=inbox)
    assert (await subscription.next_msg(timeout=5)).data == b"answer"
    assert not await worker.may_publish(inbox)
    with pytest.raises(NatsTimeoutError):
        await subscription.next_msg(timeout=0.2)
