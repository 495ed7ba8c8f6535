"""What later versions will say: contents, outcomes, frames and values that this one does not know lose nothing, stop nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_world import World, auth, batch, message, open_world, token
from scripted_gateway import PEER, Gateway, accepted, virtual
from scripted_gateway import message as event_of

from parley.api.v1 import commands_pb2, events_pb2
from parley.api.v1 import messaging_service_pb2 as api
from parley_client import SqliteStore, TimelineEvent, open_client
from services.store import encoding

FUTURE_CONTENT = b"\xf2\x01"  # the tag of Event.content number 30
UNKNOWN_FIELD = b"\xa2\x06\x02hi"  # number 100, 2 bytes


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world() as opened:
        yield opened


async def test_events_of_a_kind_that_is_not_known_reach_every_device_whole_and_at_their_place(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Live, in pages, at Sync and from the device's own file, with nothing left to sync: their bytes are kept, not understood."""
    alice, watching = await world.device("alice"), await world.device("bob", "watch")
    store = tmp_path / "bob.db"

    async def say(body: bytes) -> str:
        await alice.send(batch(message("bob", body)))
        return (await alice.outcome()).accepted.conversation_id

    async with open_client(world.address, token=token("bob"), device_id="phone", store=SqliteStore(store)) as bob:
        await bob.caught_up()
        conversation = await say(b"one")
        with monkeypatch.context() as later:
            later.setitem(encoding.CONTENT_TAGS, "message", FUTURE_CONTENT)
            await say(b"from the future")
        await say(b"three")
        got: list[TimelineEvent] = []
        async with asyncio.timeout(10):
            async for event in bob.events():
                got.append(event)
                if event.seq == 3:
                    break
        assert [(event.seq, event.content, event.text) for event in got] == [
            (1, "message", "one"),
            (2, "unsupported", ""),
            (3, "message", "three"),
        ]
    whole = got[1].event.SerializeToString()
    assert b"from the future" in whole
    assert [await watching.event() for _ in range(3)][1].SerializeToString() == whole
    page = await world.stub.ListEvents(api.ListEventsRequest(conversation_id=conversation), metadata=auth(token("bob")))
    assert page.events[1].SerializeToString() == whole
    synced = await world.stub.Sync(api.SyncRequest(last_events_count=3), metadata=auth(token("bob")))
    assert synced.conversations[0].last_events[1].SerializeToString() == whole
    async with open_client(world.address, token=token("bob"), device_id="phone", store=SqliteStore(store)) as bob:
        await bob.caught_up()
        history = await bob.history(conversation, fetch=False)
        assert [event.event.SerializeToString() for event in history][1] == whole


@virtual
async def test_frames_outcomes_and_values_that_are_not_known_stop_nothing(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        ticket = await client.send(to_user=PEER, body="a")
        _, (command,) = await stream.commands(1)
        await stream.frame(api.ConnectResponse.FromString(UNKNOWN_FIELD))
        await stream.send(outcomes=[commands_pb2.Outcome.FromString(b"\x0a\x10" + command.request_id + UNKNOWN_FIELD)])
        while not (asked := await stream.receive()) or not asked.commands:
            await stream.send(heartbeat=api.Heartbeat())
        assert gateway.clock.monotonic() >= 30, "no outcome that it knows: it asks again"
        assert asked.commands == [command]
        await stream.send(outcomes=[accepted(command, 1)])
        assert (await ticket.accepted()).seq == 1
        role = events_pb2.RoleChanged(user_id=client.user_id, role=77)  # type: ignore[arg-type]
        group = events_pb2.GroupCreated(title="g", member_user_ids=[PEER, client.user_id])
        told = [
            events_pb2.Event(conversation_id="g_x", seq=1, actor_user_id=PEER, group_created=group),
            events_pb2.Event(conversation_id="g_x", seq=2, actor_user_id=PEER, role_changed=role),
            event_of(3, conversation="g_x"),
        ]
        await stream.send(events=told)
        reader = client.events()
        assert [(await anext(reader)).seq for _ in range(4)] == [1, 1, 2, 3]
        assert client.conversation("g_x").title == "g"
