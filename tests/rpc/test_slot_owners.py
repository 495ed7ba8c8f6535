"""Several gateways over real sockets: a device is sent to where it belongs, and taken along when that changes."""

import asyncio
import gc
from contextlib import suppress
from types import AsyncGeneratorType

import grpc
import pytest
from gateway_world import auth, token, until
from slot_cluster import Cluster, Running, open_cluster

from chassis.registry import Instance
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest
from parley.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from parley_client import Client, ConnectionChanged, ConnectionState
from parley_protocol.slots import slot_key, slot_of

WAIT_SECONDS = 30.0


async def settled(cluster: Cluster) -> tuple[Running, Running]:
    await until(lambda: cluster.is_settled)
    one, two = cluster.gateways.values()
    return one, two


async def first_goodbye(address: str, bearer: str) -> api.GoAway:
    """Return what a bare device is told at an address."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = MessagingServiceStub(channel).Connect(metadata=auth(bearer), timeout=WAIT_SECONDS)
        reading = asyncio.create_task(call.read())  # before Hello: one written to a stream that is over would make it fail
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(api.ConnectRequest(hello=api.Hello(device_id="d1")))
        frame = await reading
        assert isinstance(frame, api.ConnectResponse)
        assert frame.HasField("go_away"), frame
        return frame.go_away


async def locate(address: str, user: str) -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await MessagingServiceStub(channel).Locate(api.LocateRequest(), metadata=auth(token(user)), timeout=WAIT_SECONDS)
        return answer.address


async def connected(client: Client) -> None:
    await until(lambda: client.connection is ConnectionState.CONNECTED)


async def talk(sender: Client, receiver: Client, body: str) -> None:
    """Send a message and see it arrive, live or by Sync."""
    async with asyncio.timeout(WAIT_SECONDS):
        ticket = await sender.send(to_user=receiver.user_id, body=body)
        accepted = await ticket.accepted()
        async for event in receiver.events():
            if (event.conversation_id, event.seq) == (accepted.conversation_id, accepted.seq):
                assert event.text == body
                return


async def test_a_device_at_the_wrong_gateway_is_told_the_right_one():
    async with open_cluster("g1", "g2") as cluster:
        one, two = await settled(cluster)
        user = cluster.of(two)
        goodbye = await first_goodbye(one.address, token(user))
        assert (goodbye.reason, goodbye.reconnect, goodbye.address) == (api.GO_AWAY_REASON_MOVED, True, two.address)
        assert [await locate(gateway.address, user) for gateway in (one, two)] == [two.address] * 2


async def test_users_of_different_gateways_talk_whichever_they_come_to():
    async with open_cluster("g1", "g2") as cluster:
        one, two = await settled(cluster)
        alice, bob = cluster.of(one, "alice"), cluster.of(two, "bob")
        async with cluster.client(alice, two.address) as a, cluster.client(bob, one.address) as b:
            await connected(a)
            await connected(b)
            assert (one.gateway.session_count, two.gateway.session_count) == (1, 1)
            await talk(a, b, "hello")
            await talk(b, a, "hello back")


async def test_before_it_is_clear_who_owns_what_devices_come_again_later():
    async with open_cluster("g1", slot_settle_seconds=3600) as cluster:
        (one,) = cluster.gateways.values()
        goodbye = await first_goodbye(one.address, token("alice"))
        assert (goodbye.reason, goodbye.reconnect, goodbye.address) == (api.GO_AWAY_REASON_OVERLOADED, True, "")
        assert goodbye.reconnect_delay.ToNanoseconds() == 1e9
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await locate(one.address, "alice")
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


def unread_streams() -> list[object]:
    """Return gRPC's iterators over a call's frames that were left where they stood: the collector would end them, sometime."""
    # By type(): isinstance asks what a weak proxy stands for, which may be gone.
    generators = [found for found in gc.get_objects() if type(found) is AsyncGeneratorType]
    frames = [found for found in generators if found.ag_code.co_name == "_fetch_stream_responses"]
    return [found for found in frames if found.ag_frame is not None and found.ag_await is None]


async def test_draining_takes_devices_along_slot_by_slot_and_nobody_misses_a_thing():
    async with open_cluster("g1", "g2") as cluster:
        one, two = await settled(cluster)
        alice, bob = cluster.of(one, "alice"), cluster.of(two, "bob")
        async with cluster.client(alice, two.address) as a, cluster.client(bob, two.address) as b:
            await connected(a)
            await connected(b)
            with a.changes() as notices, b.changes() as others:
                await one.gateway.drain()
                assert not one.gateway.slots.epochs
                assert len(two.gateway.slots.epochs) == 64
                async for notice in notices:
                    if isinstance(notice, ConnectionChanged):
                        assert notice.detail.startswith("DRAINING")
                        break
                await connected(a)
                await talk(a, b, "from the new place")
                await talk(b, a, "to the new place")
            assert unread_streams() == [], "a goodbye is a stream's last frame"
            assert [notice async for notice in drained(others) if isinstance(notice, ConnectionChanged)] == [], "bob never moved"
            assert (one.gateway.session_count, two.gateway.session_count) == (0, 2)


async def drained(notices):
    """Yield what is queued, without waiting for more."""
    while True:
        try:
            async with asyncio.timeout(0.01):
                yield await anext(notices)
        except (TimeoutError, StopAsyncIteration):
            return


async def test_the_devices_of_a_dead_gateway_come_back():
    async with open_cluster("g1", "g2") as cluster:
        one, two = await settled(cluster)
        alice, bob = cluster.of(one, "alice"), cluster.of(two, "bob")
        both = f"{one.address},{two.address}"
        async with cluster.client(alice, both) as a, cluster.client(bob, both) as b:
            await connected(a)
            await connected(b)
            await one.kill()
            await talk(b, a, "are you there?")
            await talk(a, b, "again")
            assert two.gateway.session_count == 2


async def test_a_newcomer_gets_its_share_with_the_devices():
    async with open_cluster("g1") as cluster:
        (one,) = cluster.gateways.values()
        await until(lambda: one.gateway.slots.is_whole)
        users = [f"user-{n}" for n in range(8)]
        clients = [cluster.client(user, one.address) for user in users]
        opened = [await client.__aenter__() for client in clients]
        try:
            for client in opened:
                await connected(client)
            two = await cluster.add("g2")
            await until(lambda: cluster.is_settled and all(client.connection is ConnectionState.CONNECTED for client in opened))
            await until(lambda: one.gateway.session_count + two.gateway.session_count == len(users))
            belong = sum(cluster.owner_of(user) is two for user in users)
            await until(lambda: two.gateway.session_count == belong)
            assert 0 < belong < len(users)
        finally:
            for client in reversed(clients):
                await client.__aexit__(None, None, None)


async def test_a_call_made_at_another_gateway_gets_its_outcome_there():
    async with open_cluster("g1", "g2") as cluster:
        one, two = await settled(cluster)
        user = cluster.of(two)
        async with grpc.aio.insecure_channel(one.address) as channel, cluster.client(user, two.address) as device:
            await connected(device)
            command = api.SubmitRequest(device_id="phone")
            command.command.request_id, command.command.to_user_id = b"0123456789abcdef", "bob"
            command.command.send_message.body = b"by call"
            answer = await MessagingServiceStub(channel).Submit(command, metadata=auth(token(user)), timeout=WAIT_SECONDS)
            async with asyncio.timeout(WAIT_SECONDS):
                async for event in device.events():
                    assert (event.seq, event.text) == (answer.accepted.seq, "by call")
                    break


async def test_a_session_that_the_registry_ended_costs_no_device_anything():
    async with open_cluster("g1", "g2") as cluster:
        one, two = await settled(cluster)
        alice, bob = cluster.of(one, "alice"), cluster.of(two, "bob")
        async with cluster.client(alice, one.address) as a, cluster.client(bob, two.address) as b:
            await connected(a)
            await connected(b)
            with a.changes() as notices, b.changes() as others:
                before = dict(one.gateway.slots.epochs) | dict(two.gateway.slots.epochs)
                for session_id in {epoch.session_id for epoch in before.values()}:
                    cluster.back.engines.registry.expire(session_id)
                await until(lambda: cluster.is_settled and not {*one.gateway.slots.epochs.values()} & {*before.values()})
                await talk(a, b, "under a new epoch")
                await talk(b, a, "likewise")
                for queue in (notices, others):
                    assert [notice async for notice in drained(queue) if isinstance(notice, ConnectionChanged)] == []


async def test_a_router_that_hashes_into_another_number_of_slots_is_sent_away():
    async with open_cluster("g1") as cluster:
        (one,) = cluster.gateways.values()
        await until(lambda: one.gateway.slots.is_whole)
        (instance,) = await anext(cluster.back.engines.registry.watch_instances("gateway"))
        async with grpc.aio.insecure_channel(instance.address) as channel:
            call = GatewayServiceStub(channel).Deliver()
            await call.write(DeliverRequest(slot_count=1024))
            with pytest.raises(grpc.aio.AioRpcError, match="set SLOT_COUNT alike"):
                await call.read()


async def test_a_gateway_that_somebody_pushed_aside_gives_way():
    """A lock that a stranger holds is a definite answer."""
    async with open_cluster("g1") as cluster:
        (one,) = cluster.gateways.values()
        await until(lambda: one.gateway.slots.is_whole)
        registry, slot = cluster.back.engines.registry, slot_of("alice", 64)
        async with cluster.client("alice", one.address) as alice:
            await connected(alice)
            (epoch,) = {epoch.session_id for epoch in one.gateway.slots.epochs.values()}
            async with registry.open_session(Instance("gateway", "g0", "127.0.0.1:1", "127.0.0.1:2")) as stranger:
                holders = registry.watch_holders(slot_key(slot))
                await anext(holders)
                registry.expire(epoch)
                assert await stranger.acquire([slot_key(slot)])
                await holders.aclose()
                await until(lambda: slot not in one.gateway.slots.epochs)
                await until(lambda: one.gateway.session_count == 0)
