"""A device's stream over a real socket: Hello, commands and their outcomes, order, heartbeats, goodbyes."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import pytest
from gateway_world import World, auth, batch, message, open_world, token, until

from chassis.errors import reason_of
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import AddMembers, ChangeSettings, Command, CreateGroup
from parley.api.v1.events_pb2 import Ack
from parley_protocol.ids import direct_conversation_id


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


def reason(goodbye: api.GoAway) -> str:
    return api.GoAwayReason.Name(goodbye.reason).removeprefix("GO_AWAY_REASON_")


async def test_welcome_states_session_limits_and_whom_the_server_sees(world: World):
    alice = world.stream(token("alice"))
    welcome = await alice.hello("phone")
    assert (welcome.user_id, welcome.device_id) == ("alice", "phone")
    assert welcome.session_id
    assert welcome.heartbeat_interval.seconds == 25
    assert welcome.server_time.seconds > 0
    assert welcome.limits.body_bytes == 16 * 1024
    assert all(value > 0 for _, value in welcome.limits.ListFields())
    assert len(welcome.limits.ListFields()) == len(welcome.limits.DESCRIPTOR.fields)


async def test_message_reaches_every_other_device_and_its_own_gets_the_outcome(world: World):
    phone, laptop, bob = await world.device("alice", "phone"), await world.device("alice", "laptop"), await world.device("bob")
    body = b"\x00\xff\xfe\xe2\x80\xae\xf0\x9f\x99\x82"
    command = message("bob", body)
    await phone.send(batch(command))
    outcome = await phone.outcome()
    assert outcome.request_id == command.request_id
    assert outcome.accepted.seq == 1
    assert outcome.accepted.conversation_id == direct_conversation_id("alice", "bob")
    for device in (laptop, bob):
        event = await device.event()
        assert (event.seq, event.message.body, event.request_id) == (1, body, command.request_id)
        assert (event.actor_user_id, event.actor_device_id) == ("alice", "phone")
    assert not phone.events


async def test_commands_of_one_frame_are_stored_in_their_order(world: World):
    alice = await world.device("alice")
    commands = [message("bob", b"%d" % number) for number in range(50)]
    await alice.send(batch(*commands))
    assert [(await alice.outcome()).accepted.seq for _ in commands] == list(range(1, 51))


async def test_resent_command_is_answered_as_a_duplicate(world: World):
    alice = await world.device("alice")
    command = message("bob")
    await alice.send(batch(command))
    first = (await alice.outcome()).accepted
    await alice.send(batch(command, first=2))
    again = (await alice.outcome()).accepted
    assert (again.seq, again.duplicate) == (first.seq, True)


async def test_request_id_with_another_payload_is_rejected(world: World):
    alice = await world.device("alice")
    await alice.send(batch(message("bob", b"one", b"r" * 16), message("bob", b"two", b"r" * 16)))
    assert (await alice.outcome()).accepted.seq == 1
    assert reason_of((await alice.outcome()).rejected) == "REQUEST_ID_REUSED"


async def test_group_id_comes_from_its_command_and_members_get_what_happens(world: World):
    alice, bob = await world.device("alice"), await world.device("bob")
    create = Command(request_id=b"g" * 16, create_group=CreateGroup(title="walk", member_user_ids=["bob"]))
    await alice.send(batch(create))
    group = (await alice.outcome()).accepted.conversation_id
    assert (await bob.event()).group_created.title == "walk"
    rename = Command(request_id=b"n" * 16, conversation_id=group, change_settings=ChangeSettings(title="run"))
    add = Command(request_id=b"a" * 16, conversation_id=group, add_members=AddMembers(user_ids=["carol"]))
    await alice.send(batch(rename, add, first=2))
    assert [(await alice.outcome()).accepted.seq for _ in range(2)] == [2, 3]
    assert (await bob.event()).settings_changed.title == "run"


async def test_member_cap_travels_with_the_command():
    async with open_world(group_members=2) as world:
        alice = await world.device("alice")
        await alice.send(batch(Command(request_id=b"g" * 16, create_group=CreateGroup(member_user_ids=["bob", "carol"]))))
        assert reason_of((await alice.outcome()).rejected) == "GROUP_FULL"


async def test_watermarks_become_receipts_for_the_sender(world: World):
    alice, bob = await world.device("alice"), await world.device("bob")
    await alice.send(batch(message("bob")))
    await alice.outcome()
    event = await bob.event()
    await bob.send(batch(acks=[Ack(conversation_id=event.conversation_id, delivered_seq=1, read_seq=0)]))
    await bob.send(batch(acks=[Ack(conversation_id=event.conversation_id, delivered_seq=1, read_seq=1)]))
    while (frame := await alice.frame()) is not None:
        receipts = [receipt for receipt in frame.batch.receipts if receipt.user_id == "bob"]
        if receipts and receipts[-1].read_seq == 1:
            break
    assert receipts[-1].delivered_seq == 1


async def test_heartbeat_is_answered(world: World):
    alice = await world.device("alice")
    await alice.send(batch(heartbeat=api.Heartbeat()))
    frame = await alice.frame()
    assert frame is not None
    assert frame.batch.HasField("heartbeat")


async def test_pinned_device_needs_no_name_and_takes_no_other(world: World):
    stream = world.stream(token("alice", "phone"))
    await stream.send(api.ConnectRequest(hello=api.Hello(device_id="laptop")))
    assert reason_of(await stream.refusal()) == "DEVICE_MISMATCH"
    assert (await stream.hello("")).device_id == "phone"


async def test_same_device_again_replaces_the_first(world: World):
    first = await world.device("alice", "phone")
    second = await world.device("alice", "phone")
    goodbye = await first.goodbye()
    assert (reason(goodbye), goodbye.reconnect) == ("REPLACED", False)
    await second.send(batch(message("alice")))
    assert (await second.outcome()).accepted.seq == 1
    assert world.value("parley_gateway_sessions") == 1


async def test_silent_device_is_told_so():
    async with open_world(heartbeat_seconds=0.2) as world:
        alice = await world.device("alice")
        assert reason(await alice.goodbye()) == "IDLE"


async def test_device_that_says_something_stays():
    async with open_world(heartbeat_seconds=0.4) as world:
        alice = await world.device("alice")
        loop = asyncio.get_running_loop()
        started = loop.time()
        while loop.time() - started < 1.2:
            await alice.send(batch(heartbeat=api.Heartbeat()))
            frame = await alice.frame()
            assert frame is not None
            assert frame.batch.HasField("heartbeat")
            await asyncio.sleep(0.1)


async def test_stream_without_hello_is_ended():
    async with open_world(hello_seconds=0.1) as world:
        assert reason(await world.stream(token("alice")).goodbye()) == "IDLE"
        await world.alive()


async def test_stream_ends_with_its_token():
    async with open_world(heartbeat_seconds=0.4) as world:
        alice = world.stream(token("alice", ttl_seconds=-29))  # counts for one second more: the leeway
        await alice.hello()

        async def heartbeats() -> None:
            while True:
                await alice.send(batch(heartbeat=api.Heartbeat()))
                await asyncio.sleep(0.2)

        beating = asyncio.ensure_future(heartbeats())
        goodbye = await alice.goodbye()
        assert (reason(goodbye), goodbye.reconnect) == ("EXPIRED", True)
        beating.cancel()
        await asyncio.wait([beating])


async def test_half_close_ends_the_stream_politely(world: World):
    alice = await world.device("alice")
    await alice.call.done_writing()
    assert await alice.frame() is None
    assert await alice.call.code() is grpc.StatusCode.OK


async def test_drain_says_goodbye_to_all_refuses_new_streams_and_keeps_what_was_taken(world: World):
    alice, bob = await world.device("alice"), await world.device("bob")
    await alice.send(batch(message("bob")))
    await alice.outcome()
    await world.gateway.drain()
    for device in (alice, bob):
        goodbye = await device.goodbye()
        assert (reason(goodbye), goodbye.reconnect) == ("DRAINING", True)
    assert reason(await world.stream(token("carol")).goodbye()) == "DRAINING"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token("alice")))
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_too_many_streams_are_told_to_come_later():
    async with open_world(max_streams=2) as world:
        await world.device("alice")
        await world.device("bob")
        goodbye = await world.stream(token("carol")).goodbye()
        assert (reason(goodbye), goodbye.reconnect, goodbye.reconnect_delay.seconds) == ("OVERLOADED", True, 5)


async def test_a_storm_of_streams_is_admitted_at_a_bounded_rate():
    async with open_world(streams_per_second=1, streams_burst=3) as world:
        for number in range(3):
            await world.device("alice", f"d{number}")
        assert reason(await world.stream(token("alice")).goodbye()) == "OVERLOADED"


async def test_one_user_can_not_take_all_streams():
    async with open_world(max_streams_per_user=2) as world:
        for number in range(2):
            await world.device("alice", f"d{number}")
        third = world.stream(token("alice"))
        await third.send(api.ConnectRequest(hello=api.Hello(device_id="d3")))
        assert reason(await third.goodbye()) == "OVERLOADED"
        await world.device("alice", "d1")
        await world.alive()


async def test_connecting_and_leaving_leaves_nothing(world: World):
    """Also when both happen at any moment of each other."""
    rng = random.Random(7)

    async def visit(number: int) -> None:
        device = world.stream(token(f"u{number % 5}"))
        await device.send(api.ConnectRequest(hello=api.Hello(device_id=f"d{number % 3}")))
        if rng.random() < 0.5:
            await device.frame()
        if rng.random() < 0.5:
            await device.send(batch(message("bob")))
        device.call.cancel()

    for _ in range(10):
        await asyncio.gather(*(visit(number) for number in range(20)))
    await until(lambda: not world.value("parley_gateway_streams"))
    assert world.value("parley_gateway_sessions") == 0
    await world.alive()
