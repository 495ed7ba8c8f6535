"""Reads of the store: whoever asks gets his own stays, in pages without holes, and nothing else."""

from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import PermissionDenied
from parley.api.v1.commands_pb2 import AddMembers, RemoveMember, SendMessage
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ListEventsRequest, ListEventsResponse, ListMembersRequest, SyncRequest
from services.store import reads, rows
from services.store.reads import Reader, _bucket_runs, seqs_after, seqs_before
from services.store.recent import RecentEvents
from services.store.sync import Syncer
from tests.unit.store_scene import Scene, command_record, group_scene
from tests.unit.store_tables import BUCKET_BITS, open_tables

BOB_SEES = [1, 2, 3, 4, 7, 8, 9]  # removed by 4, back by 7


def team() -> Scene:
    """A group of which bob is thrown out and taken back, and of which carol is thrown out for good by its last event."""
    scene = group_scene("bob", "carol", title="team")
    say = [SendMessage(body=b"%d" % number) for number in range(9)]
    told = [say[0], say[1], RemoveMember(user_id="bob"), say[2], say[3], AddMembers(user_ids=["bob"]), say[4], say[5]]
    for number, action in enumerate([*told, RemoveMember(user_id="carol")], 2):
        scene.apply(command_record("alice", action, number=number, conversation=scene.state.conversation_id))
    return scene


@asynccontextmanager
async def open_reader(recent: Container[int] = ()) -> AsyncIterator[tuple[Reader, Syncer, str]]:
    """Store the group's rows and open what reads them; `recent` of its events also lie in memory."""
    scene = team()
    memory = RecentEvents(1_000_000)
    for seq, event in scene.events.items():
        if seq in recent:
            memory.add(scene.state.conversation_id, seq, event)
    async with open_tables(scene) as tables:
        reader = Reader(tables, memory, BUCKET_BITS)
        yield reader, Syncer(tables, reader), scene.state.conversation_id


async def pages(reader: Reader, user: str, conversation_id: str, size: int, *, backwards: bool) -> list[int]:
    """Return the seqs that a user gets by turning all pages, in order."""
    seqs: list[int] = []
    while True:
        request = ListEventsRequest(conversation_id=conversation_id, page_size=size)
        if backwards:
            request.before_seq = seqs[0] if seqs else 0
        else:
            request.after_seq = seqs[-1] if seqs else 0
        page = ListEventsResponse.FromString(await reader.list_events(user, request))
        found = [event.seq for event in page.events]
        assert found, "a page between two others is never empty here"
        seqs = found + seqs if backwards else seqs + found
        if not page.more:
            return seqs


async def check_pages() -> None:
    for recent in ((), range(1, 11)):
        async with open_reader(recent) as (reader, _, conversation_id):
            for size in range(1, 11):
                for backwards in (False, True):
                    assert await pages(reader, "alice", conversation_id, size, backwards=backwards) == list(range(1, 11))
                    assert await pages(reader, "bob", conversation_id, size, backwards=backwards) == [*BOB_SEES, 10]
                    assert await pages(reader, "carol", conversation_id, size, backwards=backwards) == list(range(1, 11))


async def test_a_page_holds_the_callers_stays_and_nothing_else():
    """From the tables and from memory, for every size of a page, both ways."""
    await check_pages()


async def test_before_the_first_event_there_is_nothing():
    async with open_reader() as (reader, _, conversation_id):
        request = ListEventsRequest(conversation_id=conversation_id, before_seq=1)
        page = ListEventsResponse.FromString(await reader.list_events("alice", request))
        assert (list(page.events), page.more) == ([], False)


@pytest.mark.parametrize("max_bytes", [1, 150, 400])
async def test_pages_that_are_cut_by_their_bytes_hold_the_same(max_bytes, monkeypatch):
    monkeypatch.setattr(reads, "PAGE_BYTES", max_bytes)
    monkeypatch.setattr(reads, "_EVENTS_READ", 3)
    await check_pages()


async def test_a_page_ends_where_a_replica_lags():
    async with open_reader() as (reader, _, conversation_id):
        assert len(await reader.page(conversation_id, [9, 10, 11, 12], 1_000_000, backwards=False)) == 2
        assert not await reader.page(conversation_id, [9, 10, 11, 12], 1_000_000, backwards=True)


async def test_the_newest_of_several_conversations_have_no_hole_where_a_replica_lags():
    async with open_reader() as (reader, _, conversation_id):
        wanted = [(conversation_id, [8, 9, 10]), (conversation_id, [9, 10, 11]), ("gone", [1]), (conversation_id, [10])]
        assert [len(page) for page in await reader.newest(wanted, 1_000_000)] == [3, 0, 0, 1]


async def test_a_page_s_bytes_are_bounded():
    async with open_reader() as (reader, _, conversation_id):
        [[event]] = await reader.newest([(conversation_id, [5])], 1)
        for backwards, ends in ((False, 5), (True, 6)):
            for max_bytes, count in ((2 * len(event), 2), (2 * len(event) - 1, 1), (1, 1)):
                page = await reader.page(conversation_id, [5, 6], max_bytes, backwards=backwards)
                assert len(page) == count
                assert Event.FromString(page[-1 if backwards else 0]).seq == ends


async def test_of_several_conversations_each_gets_one_while_there_is_room_and_then_nothing_is_read(monkeypatch):
    monkeypatch.setattr(reads, "_PAGES_READ", 1)
    async with open_reader() as (reader, _, conversation_id):
        [[event]] = await reader.newest([(conversation_id, [5])], 1)
        wanted = [(conversation_id, [5, 6])] * 4
        before = reader._timeline.count
        assert [len(page) for page in await reader.newest(wanted, 2 * len(event) + 1)] == [2, 1, 0, 0]
        assert reader._timeline.count - before == 2
        assert [len(page) for page in await reader.newest(wanted, 2 * len(event))] == [2, 0, 0, 0]
        assert reader._timeline.count - before == 3


async def test_what_memory_has_is_not_read_from_the_tables():
    async with open_reader(range(1, 11)) as (reader, _, conversation_id):
        before = reader._timeline.count
        assert len(await reader.page(conversation_id, [4, 5, 6], 1_000_000, backwards=False)) == 3
        pages = await reader.newest([(conversation_id, [4, 5]), (conversation_id, [6])], 1_000_000)
        assert [[Event.FromString(event).seq for event in page] for page in pages] == [[4, 5], [6]]
        assert reader._timeline.count == before


async def test_what_memory_lacks_is_read_from_the_tables():
    async with open_reader([4, 6]) as (reader, _, conversation_id):
        page = await reader.page(conversation_id, [3, 4, 5, 6], 1_000_000, backwards=False)
        assert [Event.FromString(event).seq for event in page] == [3, 4, 5, 6]
        [page] = await reader.newest([(conversation_id, [3, 4, 5, 6])], 1_000_000)
        assert [Event.FromString(event).seq for event in page] == [3, 4, 5, 6]


def test_events_are_read_in_as_few_ranges_as_buckets_and_gaps_allow():
    assert _bucket_runs([1, 2, 3, 5, 6, 7, 8, 9, 13], 2) == [(1, 3), (5, 7), (8, 9), (13, 13)]


@pytest.mark.parametrize("name", ["seqs_after", "seqs_before"])
async def test_a_reader_that_forgets_stays_is_found(name, monkeypatch):
    original = getattr(reads, name)
    monkeypatch.setattr(reads, name, lambda stays, *rest: original([(1, 0)], *rest))
    with pytest.raises(AssertionError):
        await check_pages()


async def test_who_left_sees_the_conversation_as_of_his_leave():
    async with open_reader() as (reader, syncer, conversation_id):
        await reader_goes_on(reader, conversation_id)
        request = ListEventsRequest(conversation_id=conversation_id, after_seq=9)
        assert ListEventsResponse.FromString(await reader.list_events("carol", request)).head_seq == 10
        row = (await syncer.sync("carol", SyncRequest(last_events_count=3))).conversations[0]
        assert (row.head_seq, [event.seq for event in row.last_events]) == (10, [8, 9, 10])
        with pytest.raises(PermissionDenied):
            await reader.list_members("carol", ListMembersRequest(conversation_id=conversation_id))


async def reader_goes_on(reader: Reader, conversation_id: str) -> None:
    """Move the head two seqs beyond what carol saw."""
    state = (await reader.states([(conversation_id, ("alice", "bob", "carol"))]))[conversation_id]
    state.head_seq += 2
    await reader._timeline.write(rows.state_rows(state))


stays = st.lists(st.integers(1, 6), min_size=1, max_size=9).map(lambda steps: _stays_of(steps))


def _stays_of(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Return stays that begin and end at growing seqs; the last is open where the number of marks is odd."""
    marks: list[int] = []
    for step in steps:
        marks.append((marks[-1] if marks else 0) + step)
    found = list(zip(marks[::2], marks[1::2], strict=False))
    return [*found, (marks[-1], 0)] if len(marks) % 2 else found


@given(stays, st.integers(0, 60), st.integers(0, 60), st.integers(1, 20))
def test_seqs_of_a_page_are_those_that_counting_finds(member_stays, head_seq, mark, limit):
    head_seq = max([head_seq, *(max(stay) for stay in member_stays)])
    visible = [seq for seq in range(1, head_seq + 1) if any(first <= seq <= (last or head_seq) for first, last in member_stays)]
    assert seqs_after(member_stays, head_seq, mark, limit) == [seq for seq in visible if seq > mark][:limit]
    before = min(mark, head_seq + 1)
    assert seqs_before(member_stays, before, limit) == [seq for seq in visible if seq < before][-limit:]
