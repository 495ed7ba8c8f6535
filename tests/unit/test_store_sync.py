"""Sync page by page, while things go on happening."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chassis.errors import InvalidArgument
from parley.api.v1.commands_pb2 import CreateGroup, SendMessage
from parley.api.v1.events_pb2 import Conversation
from parley.api.v1.messaging_service_pb2 import SyncRequest
from parley_protocol.digests import BUCKET_COUNT, Held, bucket_of, digests_of, whole_digest
from parley_protocol.ids import direct_conversation_id
from services.store import reads, rows, sync
from services.store.page_tokens import decode_page_token, encode_page_token
from services.store.reads import Reader
from services.store.recent import RecentEvents
from services.store.state import LARGE_ABOVE
from services.store.sync import Syncer, _place_of
from tests.unit.store_scene import AB, T0, Scene, command_record
from tests.unit.store_tables import BUCKET_BITS, Asked, open_tables, rows_of

PEERS = [f"u{number}" for number in range(9)]
SIZE = 3  # of a page: the last of three is full
ALL = {direct_conversation_id("alice", peer) for peer in PEERS}


class World:
    """Alice's 1-1 conversations, in tables."""

    def __init__(self, timeline: Asked) -> None:
        self._timeline = timeline
        self._scenes = {peer: Scene(direct_conversation_id("alice", peer)) for peer in PEERS}
        self.asked = timeline
        self.syncer = Syncer(timeline, Reader(timeline, RecentEvents(0), BUCKET_BITS))

    async def write(self, peer: str, now_ms: int) -> str:
        """Let a peer write to alice; return the conversation."""
        scene = self._scenes[peer]
        scene.now_ms = now_ms
        scene.apply(command_record(peer, SendMessage(body=b"x"), number=scene.state.head_seq + 1, to="alice"))
        await self._timeline.write(rows_of(scene))
        return scene.state.conversation_id

    async def page(self, digests: list[int], token: str) -> tuple[list[str], str]:
        response = await self.syncer.sync("alice", SyncRequest(digests=digests, page_size=SIZE, page_token=token))
        return [row.conversation_id for row in response.conversations], response.next_page_token


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    async with open_tables() as tables:
        world = World(tables)
        for number, peer in enumerate(PEERS):
            await world.write(peer, T0 + 1000 * number)
        yield world


def _held(row: Conversation) -> Held:
    numbers = (row.head_seq, row.delivered_seq, row.read_seq, row.peer_delivered_seq, row.peer_read_seq)
    return Held(row.conversation_id, *numbers, row.version)


async def test_a_new_device_gets_the_latest_first_and_then_the_others_each_once():
    async with open_world() as world:
        seen, token = await world.page([], "")
        assert seen == [direct_conversation_id("alice", peer) for peer in reversed(PEERS[-SIZE:])]
        while token:
            more, token = await world.page([], token)
            assert len(more) == SIZE
            seen += more
        assert sorted(seen) == sorted(ALL)


@pytest.mark.parametrize(("digests", "again"), [([], SIZE), ([1] * BUCKET_COUNT, 0)], ids=["new device", "all differs"])
async def test_later_pages_read_only_what_they_tell(digests, again):
    async with open_world() as world:
        _, token = await world.page(digests, "")
        while token:
            before = world.asked.inbox_rows
            more, token = await world.page(digests, token)
            assert world.asked.inbox_rows - before <= len(more) + 1 + again, "one more, and perhaps those of the first page"


async def test_a_token_grows_no_longer_than_it_must():
    """It names of the first page what is still to come, which nobody is told twice."""
    async with open_world() as world:
        for number, peer in enumerate(sorted(PEERS, key=lambda peer: direct_conversation_id("alice", peer))[:SIZE]):
            await world.write(peer, T0 + 1_000_000 + number)
        first, token = await world.page([], "")
        while token:
            place = decode_page_token("sync False alice", token, _place_of)
            assert place.told == {name for name in first if name > place.after}
            _, token = await world.page([], token)


def test_a_place_that_no_page_gave_is_none():
    for good in (" 1", f" {2**BUCKET_COUNT - 1:x}", f"{AB} 1 {AB}"):
        assert str(_place_of(good)) == good
    for bad in ("", "1", " 0", " -1", f" {2**BUCKET_COUNT:x}", "elsewhere 1", f" 1 {AB} elsewhere"):
        with pytest.raises(InvalidArgument):
            decode_page_token("q", encode_page_token("q", bad), _place_of)


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
            assert len(more) == SIZE or not token
            seen += more
        assert seen == expected


async def told_while_others_write(world: World, digests: list[int]) -> list[str]:
    """Turn all pages; before each further one something happens in a conversation that was not told yet."""
    seen, token = await world.page(digests, "")
    now_ms = T0 + 1_000_000
    while token:
        for peer in PEERS:
            if direct_conversation_id("alice", peer) not in seen:
                await world.write(peer, now_ms := now_ms + 1000)
                break
        more, token = await world.page(digests, token)
        seen += more
    return seen


async def test_a_new_device_misses_nothing_whatever_happens_between_two_pages():
    """Also what becomes the latest after the latest were told."""
    async with open_world() as world:
        assert sorted(await told_while_others_write(world, [])) == sorted(ALL)


async def test_what_differs_is_told_whatever_happens_between_two_pages():
    """A conversation that something happens in while a device turns pages must not slip to where it has been.

    Live events tell of the event, and of nothing else: that the other side had read, or that an acknowledgement was lost, only the
    row says.
    """
    async with open_world() as world:
        assert sorted(await told_while_others_write(world, [0] * BUCKET_COUNT)) == sorted(ALL)


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
        assert await world.syncer.whole_digests(["alice"] * 100) == [alice] * 100
        with pytest.raises(InvalidArgument) as caught:
            await world.syncer.whole_digests(["alice"] * 101)
        assert caught.value.reason == "FIELD_INVALID"


@pytest.mark.parametrize(
    "request_",
    [SyncRequest(digests=[0]), SyncRequest(last_events_count=51), SyncRequest(last_events_count=-1), SyncRequest(page_size=-1)],
    ids=["digests", "too many events", "less than none", "page"],
)
async def test_what_the_api_does_not_offer_is_refused(request_):
    async with open_world() as world:
        with pytest.raises(InvalidArgument) as caught:
            await world.syncer.sync("alice", request_)
        assert caught.value.reason == "FIELD_INVALID"


async def test_a_page_is_as_large_as_the_api_says_and_the_last_one_leads_nowhere():
    scenes = [Scene(direct_conversation_id("alice", f"u{number}")) for number in range(51)]
    for number, scene in enumerate(scenes):
        scene.apply(command_record(f"u{number}", SendMessage(body=b"x"), number=1, to="alice"))
    async with open_tables(*scenes) as tables:
        syncer = Syncer(tables, Reader(tables, RecentEvents(0), BUCKET_BITS))
        first = await syncer.sync("alice", SyncRequest(last_events_count=50))
        assert (len(first.conversations), bool(first.next_page_token)) == (50, True)
        whole = await syncer.sync("alice", SyncRequest(page_size=51))
        assert (len(whole.conversations), whole.next_page_token) == (51, "")


@pytest.mark.parametrize("missing", ["alice", "u0", ""])
async def test_a_conversation_whose_first_record_is_being_applied_waits_and_the_others_do_not(missing):
    """Inbox rows are written before the state, which a lagging replica may show in part."""
    async with open_world() as world:
        latest = Scene(direct_conversation_id("alice", "u0") + "x")
        latest.now_ms = T0 + 1_000_000
        latest.apply(command_record("u0", SendMessage(body=b"x"), number=1, to="alice"))
        shown = [row for row in rows_of(latest) if row.table == rows.INBOX or (missing and row.key != missing.encode())]
        await world.syncer._timeline.write(shown)
        response = await world.syncer.sync("alice", SyncRequest(last_events_count=1))
        assert {row.conversation_id for row in response.conversations} == ALL


async def test_page_tokens_of_both_orders_are_kept_apart():
    async with open_world() as world:
        _, token = await world.page([], "")
        with pytest.raises(InvalidArgument):
            await world.page([0] * BUCKET_COUNT, token)


async def test_a_large_conversation_is_told_as_its_state_says():
    """Its inbox rows say only that somebody has it: head, watermarks and version come from the state, for digests too."""
    scene = large_scene()
    async with open_tables(scene) as tables:
        syncer = Syncer(tables, Reader(tables, RecentEvents(0), BUCKET_BITS))
        row = (await syncer.sync("m0", SyncRequest())).conversations[0]
        assert (row.head_seq, row.unread_count, row.version, row.title, row.member_count) == (2, 1, 1, "all", LARGE_ABOVE + 1)
        for held_seq, differs in ((2, False), (1, True)):
            digests = digests_of([Held(row.conversation_id, held_seq, 0, 0, 0, 0, 1)])
            assert bool((await syncer.sync("m0", SyncRequest(digests=digests))).conversations) is differs
            assert (await syncer.whole_digests(["m0"]) != [whole_digest(digests)]) is differs


@pytest.mark.parametrize("shown", ["nothing", "the others"])
async def test_a_large_conversation_that_is_not_there_yet_is_not_told(shown):
    scene = large_scene()
    async with open_tables() as tables:
        found = [row for row in rows_of(scene) if row.table == rows.INBOX or (shown == "the others" and row.key != b"m0")]
        await tables.write(found)
        syncer = Syncer(tables, Reader(tables, RecentEvents(0), BUCKET_BITS))
        assert not (await syncer.sync("m0", SyncRequest())).conversations
        assert await syncer.whole_digests(["m0"]) == [0]


def large_scene() -> Scene:
    members = [f"m{number}" for number in range(LARGE_ABOVE)]
    create = command_record("alice", CreateGroup(title="all", member_user_ids=members), number=1, member_cap=100)
    scene = Scene(create.conversation_id)
    scene.apply(create)
    scene.apply(command_record("alice", SendMessage(body=b"x"), number=2, conversation=create.conversation_id))
    assert scene.state.large
    return scene
