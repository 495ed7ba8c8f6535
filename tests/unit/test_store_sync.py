"""Sync page by page, while things go on happening."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from chassis.errors import InvalidArgument
from chassis.timeline import Cell, Timeline
from parley.api.v1.commands_pb2 import CreateGroup, SendMessage
from parley.api.v1.events_pb2 import Conversation
from parley.api.v1.messaging_service_pb2 import SyncRequest
from parley_protocol.digests import BUCKET_COUNT, Held, bucket_of, digests_of, whole_digest
from parley_protocol.ids import direct_conversation_id
from services.store import reads, rows, sync
from services.store.reads import Reader
from services.store.recent import RecentEvents
from services.store.state import LARGE_ABOVE
from services.store.sync import Syncer
from tests.unit.store_scene import T0, Scene, command_record

PEERS = [f"u{number}" for number in range(9)]
ALL = {direct_conversation_id("alice", peer) for peer in PEERS}


BUCKET_BITS = 4


class Asked:
    """A timeline that counts what it is asked, and which rows of inboxes it gave."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.count = 0
        self.inbox_rows = 0

    def __getattr__(self, name: str) -> Any:
        self.count += 1
        return getattr(self._timeline, name)

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        self.count += 1
        found = await self._timeline.read_partitions(table, partitions, limit)
        self.inbox_rows += sum(map(len, found.values())) if table == rows.INBOX else 0
        return found

    async def read_range(self, table: str, *where: Any) -> Sequence[Cell]:
        self.count += 1
        found = await self._timeline.read_range(table, *where)
        self.inbox_rows += len(found) if table == rows.INBOX else 0
        return found


class World:
    """Alice's 1-1 conversations, in tables."""

    def __init__(self, timeline: Any) -> None:
        self._timeline = timeline
        self._scenes = {peer: Scene(direct_conversation_id("alice", peer)) for peer in PEERS}
        self.asked = timeline
        self.syncer = Syncer(timeline, Reader(timeline, RecentEvents(0), BUCKET_BITS))

    async def write(self, peer: str, now_ms: int) -> str:
        """Let a peer write to alice; return the conversation."""
        scene = self._scenes[peer]
        scene.now_ms = now_ms
        scene.apply(command_record(peer, SendMessage(body=b"x"), number=scene.state.head_seq + 1, to="alice"))
        state = scene.state
        for user in state.members:
            state.touch_member(user)
        events = [rows.event_row(state.conversation_id, seq, event, seq, BUCKET_BITS) for seq, event in scene.events.items()]
        await self._timeline.write([*events, *rows.inbox_rows(state), *rows.state_rows(state)])
        rows.clear_dirty(state)
        return state.conversation_id

    async def page(self, digests: list[int], token: str) -> tuple[list[str], str]:
        response = await self.syncer.sync("alice", SyncRequest(digests=digests, page_size=2, page_token=token))
        return [row.conversation_id for row in response.conversations], response.next_page_token


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        world = World(Asked(engines.timeline))
        for number, peer in enumerate(PEERS):
            await world.write(peer, T0 + 1000 * number)
        yield world


def _held(row: Conversation) -> Held:
    numbers = (row.head_seq, row.delivered_seq, row.read_seq, row.peer_delivered_seq, row.peer_read_seq)
    return Held(row.conversation_id, *numbers, row.version)


async def test_a_new_device_gets_the_latest_first_and_then_the_others_each_once():
    async with open_world() as world:
        seen, token = await world.page([], "")
        assert seen == [direct_conversation_id("alice", peer) for peer in reversed(PEERS[-2:])]
        while token:
            more, token = await world.page([], token)
            assert len(more) == 2 or not token
            seen += more
        assert sorted(seen) == sorted(ALL)


async def test_later_pages_read_only_what_they_tell():
    async with open_world() as world:
        _, token = await world.page([], "")
        while token:
            before = world.asked.inbox_rows
            more, token = await world.page([], token)
            assert world.asked.inbox_rows - before <= len(more) + 1 + 2, "one more, and perhaps those of the first page"


async def test_of_few_buckets_pages_are_full_and_end():
    """Most of what lies between has not changed: it is read in larger pieces, and told to nobody."""
    async with open_world() as world:
        held = [_held(row) for row in (await world.syncer.sync("alice", SyncRequest(page_size=100))).conversations]
        digests = digests_of(held)
        differing = sorted({bucket_of(one.conversation_id) for one in held})[:5]
        for bucket in differing:
            digests[bucket] ^= 1
        expected = sorted(one.conversation_id for one in held if bucket_of(one.conversation_id) in differing)
        seen, token = await world.page(digests, "")
        while token:
            more, token = await world.page(digests, token)
            assert len(more) == 2 or not token
            seen += more
        assert seen == expected


async def test_a_new_device_misses_nothing_whatever_happens_between_two_pages():
    """Also what becomes the latest after the latest were told."""
    async with open_world() as world:
        seen, token = await world.page([], "")
        now_ms = T0 + 1_000_000
        while token:
            for peer in PEERS:
                if direct_conversation_id("alice", peer) not in seen:
                    await world.write(peer, now_ms := now_ms + 1000)
                    break
            more, token = await world.page([], token)
            seen += more
        assert sorted(seen) == sorted(ALL)


async def test_what_differs_is_told_whatever_happens_between_two_pages():
    """A conversation that something happens in while a device turns pages must not slip to where it has been.

    Live events tell of the event, and of nothing else: that the other side had read, or that an acknowledgement was lost, only the
    row says.
    """
    async with open_world() as world:
        digests = [0] * BUCKET_COUNT
        seen, token = await world.page(digests, "")
        now_ms = T0 + 1_000_000
        while token:
            for peer in PEERS:
                if direct_conversation_id("alice", peer) not in seen:
                    await world.write(peer, now_ms := now_ms + 1000)
                    break
            more, token = await world.page(digests, token)
            seen += more
        assert sorted(seen) == sorted(ALL)


async def test_last_events_come_in_a_few_reads_however_many_conversations_there_are():
    async with open_world() as world:
        await world.write(PEERS[0], T0 + 1_000_000)
        before = world.asked.count
        response = await world.syncer.sync("alice", SyncRequest(page_size=100, last_events_count=2))
        assert world.asked.count - before <= 3, "the inbox, the states, the events"
        seqs = {row.peer_user_id: [event.seq for event in row.last_events] for row in response.conversations}
        assert seqs == {peer: [1, 2] if peer == PEERS[0] else [1] for peer in PEERS}


async def test_last_events_are_told_as_far_as_there_is_room_the_latest_conversations_first(monkeypatch):
    monkeypatch.setattr(reads, "_PAGES_READ", 2)
    async with open_world() as world:
        size = len(
            (await world.syncer.sync("alice", SyncRequest(page_size=1, last_events_count=1)))
            .conversations[0]
            .last_events[0]
            .SerializeToString()
        )
        monkeypatch.setattr(sync, "PAGE_BYTES", 3 * size)
        response = await world.syncer.sync("alice", SyncRequest(page_size=100, last_events_count=5))
        assert [len(row.last_events) for row in response.conversations] == [1, 1, 1] + [0] * (len(PEERS) - 3)


async def test_whole_digests_are_those_of_sync_in_one_number():
    """A device that holds what its user should hold has the same; who has nothing has 0."""
    async with open_world() as world:
        rows_of_alice = (await world.syncer.sync("alice", SyncRequest(page_size=100))).conversations
        held = map(_held, rows_of_alice)
        alice, nobody, again, peer = await world.syncer.whole_digests(["alice", "nobody", "alice", PEERS[0]])
        assert alice == again == whole_digest(digests_of(held)) != 0
        assert nobody == 0
        assert peer not in (0, alice)
        with pytest.raises(InvalidArgument):
            await world.syncer.whole_digests(["alice"] * 101)


async def test_page_tokens_of_both_orders_are_kept_apart():
    async with open_world() as world:
        _, token = await world.page([], "")
        with pytest.raises(InvalidArgument):
            await world.page([0] * BUCKET_COUNT, token)


async def test_a_large_conversation_is_told_as_its_state_says():
    """Its inbox rows say only that somebody has it: head, watermarks and version come from the state, for digests too."""
    members = [f"m{number}" for number in range(LARGE_ABOVE)]
    create = command_record("alice", CreateGroup(title="all", member_user_ids=members), number=1, member_cap=100)
    scene = Scene(create.conversation_id)
    scene.apply(create)
    scene.apply(command_record("alice", SendMessage(body=b"x"), number=2, conversation=create.conversation_id))
    for user in scene.state.members:
        scene.state.touch_member(user)
        scene.state.touch_inbox(user)
    assert scene.state.large
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        await engines.timeline.write([*rows.inbox_rows(scene.state), *rows.state_rows(scene.state)])
        syncer = Syncer(engines.timeline, Reader(engines.timeline, RecentEvents(0), BUCKET_BITS))
        row = (await syncer.sync("m0", SyncRequest())).conversations[0]
        assert (row.head_seq, row.unread_count, row.version, row.title, row.member_count) == (2, 1, 1, "all", LARGE_ABOVE + 1)
        for held_seq, differs in ((2, False), (1, True)):
            digests = digests_of([Held(row.conversation_id, held_seq, 0, 0, 0, 0, 1)])
            assert bool((await syncer.sync("m0", SyncRequest(digests=digests))).conversations) is differs
