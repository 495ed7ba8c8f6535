"""How a client comes to hold what its user may see, on virtual time: Sync, gaps, intervals, history, acknowledgements, crashes."""

import copy

import pytest
from scripted_gateway import DEVICE, DIRECT, ME, PEER, Gateway, accepted, message, until, virtual

from chassis.errors import InvalidArgument, NotFound, Unavailable
from parley.api.v1 import events_pb2 as events
from parley.api.v1 import messaging_service_pb2 as api
from parley_client import (
    CallError,
    CaughtUp,
    Client,
    ClientOptions,
    ConversationChanged,
    MemoryStore,
    ReceiptMoved,
    UnknownConversationError,
)
from parley_client.outbox_state import LOOK_AFTER_MS
from parley_protocol.digests import BUCKET_COUNT, Held, digest_of, digests_of
from parley_protocol.ids import direct_conversation_id


async def seqs(client: Client, count: int) -> list[int]:
    """Return the seqs of the next events."""
    stream = client.events()
    return [(await anext(stream)).seq for _ in range(count)]


@virtual
async def test_a_new_device_sends_no_digests_and_begins_with_the_newest_events(gateway: Gateway):
    gateway.timeline = [message(seq) for seq in range(1, 10)]
    gateway.rows = [gateway.row(last_events=gateway.timeline[-2:], unread_count=9)]
    async with gateway.client() as client:
        await client.caught_up()
        assert not gateway.syncs[0].digests
        assert await seqs(client, 2) == [8, 9]
        (conversation,) = client.conversations()
        assert (conversation.first_held_seq, conversation.held_seq, conversation.unread_count) == (8, 9, 9)
        assert conversation.peer_user_id == PEER


@virtual
async def test_a_device_that_was_here_before_sends_digests_of_what_it_holds_and_fetches_the_rest(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        stream = await gateway.stream()
        await client.caught_up()
        await stream.send(events=[message(1)])
        await stream.acks()
    gateway.timeline = [message(seq) for seq in range(1, 9)]
    gateway.rows = [gateway.row(last_events=gateway.timeline[-1:], delivered_seq=1)]
    async with gateway.client(store) as client:
        await client.caught_up()
        assert list(gateway.syncs[-1].digests) == digests_of([Held(DIRECT, 1, 1, 0, 0, 0, 0)])
        assert len(gateway.syncs[-1].digests) == BUCKET_COUNT
        assert await seqs(client, 8) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [page.after_seq for page in gateway.pages] == [1, 4]  # the last page brings up to 7, the row brought 8


@virtual
async def test_sync_goes_through_all_its_pages_and_begins_again_when_a_token_is_forgotten(gateway: Gateway):
    peers = [f"u{number}" for number in range(5)]
    ids = [direct_conversation_id(ME, peer) for peer in peers]
    gateway.rows = [
        gateway.row(id_, peer_user_id=peer, kind=events.CONVERSATION_KIND_DIRECT, head_seq=1, last_events=[message(1, peer, id_)])
        for id_, peer in zip(ids, peers, strict=True)
    ]
    gateway.rows_per_page = 2
    gateway.failures = [None, InvalidArgument("PAGE_TOKEN_INVALID", "forgotten")]
    async with gateway.client() as client:
        await client.caught_up()
        assert [request.page_token for request in gateway.syncs] == ["", "", "2", "4"]
        assert sorted(conversation.peer_user_id for conversation in client.conversations()) == peers
        assert await seqs(client, 5) == [1] * 5


@virtual
async def test_a_sync_that_fails_is_repeated_after_the_servers_delay(gateway: Gateway):
    gateway.failures = [Unavailable("UNAVAILABLE", "later", retry_delay_seconds=3)]
    async with gateway.client() as client:
        await client.caught_up()
        assert gateway.clock.monotonic() >= 3
        assert len(gateway.syncs) == 1


@virtual
async def test_a_live_gap_is_fetched_and_events_come_in_order(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        await stream.send(events=[message(1)])
        gateway.timeline = [message(seq) for seq in range(1, 8)]
        await stream.send(events=[message(7), message(6)])
        assert await seqs(client, 7) == [1, 2, 3, 4, 5, 6, 7]
        assert [page.after_seq for page in gateway.pages] == [1, 4]


@virtual
async def test_a_batch_is_one_set_ordered_by_seq_own_commands_among_the_events(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.send(to_user=PEER, body="mine")
        _, (command,) = await stream.commands(1)
        receipt = events.Receipt(conversation_id=DIRECT, user_id=PEER, delivered_seq=2)
        await stream.send(events=[message(3), message(1)], outcomes=[accepted(command, 2)], receipts=[receipt])
        stream_of_events = client.events()
        got = [await anext(stream_of_events) for _ in range(3)]
        assert [(event.seq, event.own) for event in got] == [(1, False), (2, True), (3, False)]
        assert client.receipts(DIRECT) == {PEER: (2, 0)}


@virtual
async def test_an_own_command_whose_outcome_was_lost_is_settled_by_its_event(gateway: Gateway):
    async with gateway.client() as client:
        ticket = await client.send(to_user=PEER, body="mine")
        first = await gateway.stream()
        _, (command,) = await first.commands(1)
        gateway.timeline = [message(1, ME, device=DEVICE, request_id=command.request_id)]
        gateway.rows = [gateway.row(last_events=gateway.timeline)]
        first.end()
        place = await ticket.accepted()
        assert (place.seq, place.duplicate) == (1, True)
        assert (await anext(client.events())).own


@virtual
async def test_commands_older_than_7_days_are_looked_for_before_they_are_resent(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        first = await gateway.stream()
        await client.caught_up()
        stored, lost = [await client.send(to_user=PEER, body=body) for body in ("stored", "lost")]
        _, sent = await first.commands(2)
        image = copy.deepcopy(store)
    gateway.clock.jump_wall(LOOK_AFTER_MS / 1000 + 1)
    gateway.timeline = [message(1, ME, device=DEVICE, request_id=stored.request_id), *(message(seq) for seq in range(2, 6))]
    gateway.rows = [gateway.row()]
    async with gateway.client(image) as client:
        stream = await gateway.stream()
        assert (await client.pending()[0].accepted()).seq == 1
        numbers, again = await stream.commands(1)
        assert (numbers, again) == ([1], [sent[1]])
        assert again[0].request_id == lost.request_id


@virtual
async def test_a_conversation_that_begins_while_the_device_is_here_needs_no_call(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        await stream.send(events=[message(1)])
        assert await seqs(client, 1) == [1]
        assert client.conversation(DIRECT).peer_user_id == PEER
        assert not gateway.pages


@virtual
async def test_an_unknown_conversation_is_asked_for_and_held_from_its_first_visible_event(gateway: Gateway):
    group = "g_" + "a" * 26
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        gateway.intervals = [(5, 0)]
        gateway.timeline = [message(seq, conversation=group) for seq in range(5, 9)]
        await stream.send(events=[gateway.timeline[-1]])
        assert await seqs(client, 4) == [5, 6, 7, 8]
        assert client.conversation(group).kind == events.CONVERSATION_KIND_GROUP


@virtual
async def test_a_conversation_that_is_not_ours_after_all_is_given_up(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        gateway.failures = [NotFound("CONVERSATION_NOT_FOUND", "no")]
        await stream.send(inbox_changes=[events.InboxChange(conversation_id=DIRECT, head_seq=3)])
        await stream.send(events=[message(1, conversation="d_" + "b" * 26)])
        assert await seqs(client, 1) == [1]
        await until(lambda: DIRECT not in [conversation.conversation_id for conversation in client.conversations()])


@virtual
async def test_a_page_below_the_announced_head_is_asked_for_again_and_then_settled_for(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        gateway.timeline = [message(1), message(2)]
        await stream.send(inbox_changes=[events.InboxChange(conversation_id=DIRECT, head_seq=3)])
        assert await seqs(client, 2) == [1, 2]
        gateway.timeline.append(message(3))  # becomes readable a moment after it was announced
        assert await seqs(client, 1) == [3]
        await stream.send(inbox_changes=[events.InboxChange(conversation_id=DIRECT, head_seq=9)])
        await until(lambda: client.conversation(DIRECT).head_seq == 3)
        assert len(gateway.pages) < 15


@virtual
async def test_a_page_with_a_hole_ends_the_stream_and_nothing_of_it_is_shown(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        gateway.timeline = [message(1), message(3)]
        await stream.send(inbox_changes=[events.InboxChange(conversation_id=DIRECT, head_seq=3)])
        gateway.rows = [gateway.row()]
        again = await gateway.stream()
        gateway.timeline = [message(1), message(2), message(3)]
        assert await seqs(client, 3) == [1, 2, 3]
        again.end()


@virtual
async def test_delivered_is_acknowledged_by_itself_and_read_when_the_app_says_so(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await stream.send(events=[message(1), message(2, ME, device="d2")])
        assert await stream.acks() == [(1, 0)]  # one's own messages need none
        await client.mark_read(DIRECT, 99)  # at most what is held
        assert await stream.acks() == [(2, 2)]
        assert client.conversation(DIRECT).unread_count == 0
        await client.mark_read(DIRECT, 1)
        assert client.conversation(DIRECT).read_seq == 2


@virtual
async def test_watermarks_that_exceed_the_servers_are_acknowledged_again(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        stream = await gateway.stream()
        await client.caught_up()
        await stream.send(events=[message(1), message(2)])
        await seqs(client, 2)
        await client.mark_read(DIRECT, 2)
        image = copy.deepcopy(store)
    gateway.timeline = [message(1), message(2)]
    gateway.rows = [gateway.row()]
    async with gateway.client(image):
        assert await (await gateway.stream()).acks() == [(2, 2)]


@virtual
async def test_receipts_are_told_once_and_never_backwards(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await stream.send(events=[message(1)])
        with client.changes() as changes:
            await client.caught_up()
            for delivered, read in ((1, 0), (1, 0), (0, 0), (1, 1)):
                receipt = events.Receipt(conversation_id=DIRECT, user_id=PEER, delivered_seq=delivered, read_seq=read)
                await stream.send(receipts=[receipt])
            moved = []
            while len(moved) < 2:
                notice = await anext(changes)
                if isinstance(notice, ReceiptMoved):
                    moved.append((notice.delivered_seq, notice.read_seq))
            assert moved == [(1, 0), (1, 1)]


@virtual
async def test_history_comes_from_the_store_and_then_from_the_server(gateway: Gateway):
    gateway.timeline = [message(seq) for seq in range(1, 13)]
    gateway.rows = [gateway.row(last_events=gateway.timeline[-2:])]
    async with gateway.client() as client:
        await client.caught_up()
        assert [event.seq for event in await client.history(DIRECT, limit=2)] == [11, 12]
        assert not gateway.pages
        assert [event.seq for event in await client.history(DIRECT, limit=5)] == [8, 9, 10, 11, 12]
        assert [event.seq for event in await client.history(DIRECT, before=8, limit=99)] == [1, 2, 3, 4, 5, 6, 7]
        asked = len(gateway.pages)
        assert len(await client.history(DIRECT, limit=99)) == 12
        assert len(gateway.pages) == asked
        assert await seqs(client, 2) == [11, 12]  # history is never handed out as events
        with pytest.raises(UnknownConversationError):
            await client.history("d_" + "z" * 26)


@virtual
async def test_history_that_cannot_be_had_is_an_error_not_an_end(gateway: Gateway):
    gateway.timeline = [message(seq) for seq in range(1, 5)]
    gateway.rows = [gateway.row(last_events=gateway.timeline[-1:])]
    async with gateway.client() as client:
        await client.caught_up()
        gateway.failures = [Unavailable("UNAVAILABLE", "away")] * 1000
        with pytest.raises(CallError):
            await client.history(DIRECT)
        assert [event.seq for event in await client.history(DIRECT, fetch=False)] == [4]
        gateway.failures = [Unavailable("UNAVAILABLE", "away for a moment")]
        assert [event.seq for event in await client.history(DIRECT)] == [1, 2, 3, 4]


@virtual
async def test_an_app_gets_each_event_once_per_process_and_after_a_crash_what_it_had_not_finished(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store) as client:
        stream = await gateway.stream()
        await stream.send(events=[message(seq) for seq in range(1, 5)])
        assert await seqs(client, 2) == [1, 2]
        assert await seqs(client, 1) == [3]  # asking for 3 finished 2
        client._device.flush()  # what happens within a moment of other traffic
        image = copy.deepcopy(store)
    async with gateway.client(image) as client:
        assert await seqs(client, 2) == [3, 4]


@virtual
async def test_a_device_that_keeps_few_events_fetches_old_ones_again(gateway: Gateway):
    store = MemoryStore()
    async with gateway.client(store, options=ClientOptions(keep_events=3)) as client:
        stream = await gateway.stream()
        gateway.timeline = [message(seq) for seq in range(1, 21)]
        for event in gateway.timeline:
            await stream.send(events=[event])
        assert await seqs(client, 20) == list(range(1, 21))
        assert len(store.events(DIRECT, 1, 99, 99)) <= 6
        assert [event.seq for event in await client.history(DIRECT, limit=20)] == list(range(1, 21))


@virtual
async def test_caught_up_is_told_on_each_connection_after_the_gaps_are_filled(gateway: Gateway):
    gateway.timeline = [message(seq) for seq in range(1, 9)]
    gateway.rows = [gateway.row(last_events=gateway.timeline[-1:])]
    async with gateway.client() as client:
        with client.changes() as changes:
            first = await gateway.stream()
            while not isinstance(await anext(changes), CaughtUp):
                pass
            first.end()
            gateway.timeline += [message(seq) for seq in range(9, 19)]
            gateway.rows = [gateway.row()]
            await gateway.stream()
            changed = 0
            while not isinstance(notice := await anext(changes), CaughtUp):
                changed += isinstance(notice, ConversationChanged)
            assert changed
            assert client.conversation(DIRECT).held_seq == 18


@virtual
async def test_a_device_says_what_it_holds_when_it_is_asked_and_syncs_when_that_is_wrong(gateway: Gateway):
    async with gateway.client() as client:
        stream = await gateway.stream()
        await client.caught_up()
        await stream.send(events=[message(1)])
        assert await seqs(client, 1) == [1]
        await stream.acks()
        await stream.send(digest_check=api.DigestCheck())
        batch = await stream.receive()
        assert batch is not None
        held = Held(DIRECT, 1, 1, 0, 0, 0, 0)
        assert batch.digest.value == digest_of(held)
        gateway.timeline = [message(seq) for seq in range(1, 4)]
        gateway.rows = [gateway.row()]
        await stream.send(digest_check=api.DigestCheck(differs=True))
        await until(lambda: len(gateway.syncs) == 2)
        assert [*gateway.syncs[1].digests] == digests_of([held])
        assert await seqs(client, 2) == [2, 3]
        assert gateway.streams.empty(), "the stream goes on"


@virtual
async def test_a_device_that_knows_itself_behind_says_nothing_of_what_it_holds(gateway: Gateway):
    gateway.failures = [Unavailable("UNAVAILABLE", "later", retry_delay_seconds=3)] * 2
    async with gateway.client() as client:
        stream = await gateway.stream()
        await stream.send(digest_check=api.DigestCheck())
        await client.caught_up()
        assert all(not frame.batch.HasField("digest") for frame in stream.frames)
