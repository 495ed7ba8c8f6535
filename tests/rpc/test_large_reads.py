"""Reads of much: large events, many conversations, pages both ways. Nothing in them keeps a device from catching up."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from gateway_world import World, auth, batch, message, open_world, token

from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.events_pb2 import Conversation
from parley_client import MemoryStore, open_client
from parley_protocol.digests import Held, digests_of
from parley_protocol.limits import PAGE_BYTES

BOB = auth(token("bob"))
LARGE = b"\xa2\x06\x80\xb0\x0f" + bytes(251_904)  # an unknown field: what a message may hold beside a body of 16 KiB


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_world(commands_per_second=100_000, commands_burst=100_000) as opened:
        yield opened


def large_message(number: int) -> Command:
    content = SendMessage.FromString(SendMessage(body=b"%d" % number).SerializeToString() + LARGE)
    return Command(request_id=b"large%011d" % number, to_user_id="bob", send_message=content)


async def test_large_events_come_in_pages_that_every_client_takes(world: World):
    """Clients of gRPC take 4 MiB unless told otherwise, and any stranger may send such messages to anybody."""
    alice = await world.device("alice")
    for number in range(1, 25):
        await alice.send(batch(large_message(number), first=number))
        conversation = (await alice.outcome()).accepted.conversation_id
    for backwards in (False, True):
        seqs: list[int] = []
        request = api.ListEventsRequest(conversation_id=conversation, page_size=200, after_seq=0)
        if backwards:
            request.before_seq = 0
        while True:
            page = await world.stub.ListEvents(request, metadata=BOB)
            found = [event.seq for event in page.events]
            assert found == list(range(found[0], found[-1] + 1))
            assert sum(len(event.SerializeToString()) for event in page.events) <= PAGE_BYTES
            seqs = found + seqs if backwards else seqs + found
            if not page.more:
                break
            if backwards:
                request.before_seq = seqs[0]
            else:
                request.after_seq = seqs[-1]
        assert seqs == list(range(1, 25))
    synced = await world.stub.Sync(api.SyncRequest(last_events_count=50), metadata=BOB)
    newest = [event.seq for event in synced.conversations[0].last_events]
    assert newest == list(range(newest[0], 25))
    async with open_client(world.address, token=token("bob"), device_id="phone", store=MemoryStore()) as bob:
        await bob.caught_up()
        history = await bob.history(conversation, limit=100)
        assert [event.text for event in history] == [str(number) for number in range(1, 25)]


async def all_rows(world: World, request: api.SyncRequest) -> list[Conversation]:
    """Return the rows of all pages."""
    rows: list[Conversation] = []
    while True:
        page = await world.stub.Sync(request, metadata=BOB)
        rows += page.conversations
        if not page.next_page_token:
            return rows
        request.page_token = page.next_page_token


def held(row: Conversation) -> Held:
    """Say what a device holds that has all that the row tells."""
    return Held(
        row.conversation_id, row.head_seq, row.delivered_seq, row.read_seq, row.peer_delivered_seq, row.peer_read_seq, row.version
    )


async def test_300_conversations_are_synced_page_by_page_and_then_only_what_changed(world: World):
    senders = {f"u{number}" for number in range(300)}
    first = (world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token(user))) for user in senders)
    await asyncio.gather(*first)
    rows = await all_rows(world, api.SyncRequest(page_size=70))
    assert len(rows) == 300, "each once"
    assert {row.peer_user_id for row in rows} == senders
    times = [row.last_time.ToMilliseconds() for row in rows]
    assert times[:70] == sorted(times, reverse=True)[:70], "the latest first"
    assert all((row.head_seq, row.unread_count) == (1, 1) for row in rows)
    digests = digests_of(map(held, rows))
    assert not await all_rows(world, api.SyncRequest(digests=digests))
    await world.stub.Submit(api.SubmitRequest(device_id="d", command=message()), metadata=auth(token("u7")))
    changed = await all_rows(world, api.SyncRequest(digests=digests, page_size=1))
    assert [row.peer_user_id for row in changed if row.head_seq == 2] == ["u7"]
    assert len(changed) < 30, "one bucket of 64"
    async with open_client(world.address, token=token("bob"), device_id="phone", store=MemoryStore()) as bob:
        await bob.caught_up()
        assert len(bob.conversations()) == 300
        assert sum(conversation.unread_count for conversation in bob.conversations()) == 301
