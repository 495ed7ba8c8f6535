"""Bytes put together by hand are what the generated classes read."""

from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from parley.api.v1.commands_pb2 import Outcome, SendMessage
from parley.api.v1.events_pb2 import Event, InboxChange, Receipt
from parley.log.v1.records_pb2 import EventBatch, EventRecord, MembershipChange
from parley.store.v1.rows_pb2 import DedupeRow, HeadRow, InboxRow, MemberRow
from services.store import encoding
from services.store.rows import member_of
from services.store.state import ConversationState, Member, OwnRange, Position

numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**62))
times = st.integers(0, 4_000_000_000_000)
texts = st.text(max_size=40)
blobs = st.binary(max_size=300)


def same(encoded: bytes, expected) -> None:
    assert type(expected).FromString(encoded) == expected


def exactly(encoded: bytes, expected) -> None:
    """What goes to every device holds no byte that the generated class would leave out."""
    assert encoded == expected.SerializeToString()


@given(times)
@example(0)
@example(1_000)
@example(999)
def test_timestamp(time_ms):
    expected = Timestamp()
    expected.FromMilliseconds(time_ms)
    exactly(encoding.timestamp(time_ms), expected)


@given(numbers, times, texts, texts, blobs, numbers, blobs)
def test_event(seq, time_ms, user, device, request_id, count, body):
    payload = SendMessage(body=body)
    expected = Event(
        conversation_id="d_x",
        seq=seq,
        actor_user_id=user,
        actor_device_id=device,
        request_id=request_id,
        message_count=count,
        message=payload,
    )
    expected.time.FromMilliseconds(time_ms)
    time = encoding.timestamp(time_ms)
    content = payload.SerializeToString()
    same(encoding.event("d_x", seq, time, user, device, request_id, count, "message", content), expected)


def test_every_content_has_the_tag_of_its_field():
    for name, tag in encoding.CONTENT_TAGS.items():
        encoded = encoding.event("c", 1, encoding.timestamp(1), "u", "d", b"r", 0, name, b"")
        assert tag in encoded
        assert Event.FromString(encoded).WhichOneof("content") == name


@given(blobs, texts, numbers, numbers, times, st.booleans())
def test_accepted(request_id, conversation, seq, count, time_ms, duplicate):
    expected = Outcome(request_id=request_id)
    expected.accepted.conversation_id = conversation
    expected.accepted.seq, expected.accepted.message_count, expected.accepted.duplicate = seq, count, duplicate
    expected.accepted.time.FromMilliseconds(time_ms)
    same(encoding.accepted(request_id, conversation, seq, count, encoding.timestamp(time_ms), duplicate=duplicate), expected)


@given(texts, texts, numbers, numbers, times)
@example("", "", 0, 0, 1)
def test_receipt(conversation, user, delivered, read, time_ms):
    expected = Receipt(conversation_id=conversation, user_id=user, delivered_seq=delivered, read_seq=read)
    expected.time.FromMilliseconds(time_ms)
    exactly(encoding.receipt(conversation, user, delivered, read, encoding.timestamp(time_ms)), expected)


@given(texts, st.lists(numbers, min_size=6, max_size=6))
@example("", [0] * 6)
def test_inbox_change(conversation, values):
    names = ("head_seq", "message_count", "delivered_seq", "read_seq", "unread_count", "version")
    exactly(
        encoding.inbox_change(conversation, *values),
        InboxChange(conversation_id=conversation, **dict(zip(names, values, strict=True))),
    )


@given(st.integers(0, 1000), st.integers(0, 1000), numbers, times, numbers, numbers, blobs)
def test_dedupe_row(epoch, partition, offset, log_ms, seq, count, rejection):
    digest = encoding.payload_hash("c", "send_message", b"x")
    expected = DedupeRow(
        log_epoch=epoch,
        partition=partition,
        offset=offset,
        log_time_ms=log_ms,
        payload_hash=digest,
        seq=seq,
        message_count=count,
        rejection=rejection,
    )
    same(encoding.dedupe_row(epoch, partition, offset, log_ms, digest, seq, count, rejection), expected)


@given(texts, numbers, st.lists(texts.filter(bool), max_size=3), blobs, blobs, blobs, st.booleans(), st.booleans())
@example("", 0, [], b"", b"", b"", False, False)
def test_event_record(conversation, seq, recipients, shared, own, actor, all_members, wakes):
    change = MembershipChange(user_id="x", joined=True)
    expected = EventRecord(
        conversation_id=conversation,
        seq=seq,
        user_id="u",
        device_id="d",
        gateway_id="g",
        session_id="s",
        shared=shared,
        own=own,
        actor=actor,
        recipients=recipients,
        all_members=all_members,
        membership_changes=[change],
        wakes=wakes,
    )
    encoded = encoding.event_record(
        conversation,
        seq,
        "u",
        "d",
        "g",
        "s",
        shared,
        own,
        actor,
        recipients,
        all_members=all_members,
        membership_changes=[change],
        wakes=wakes,
    )
    exactly(encoded, EventBatch(events=[expected]))


def test_the_payload_hash_tells_conversation_action_and_bytes_apart():
    hashes = {
        encoding.payload_hash("c1", "send_message", b"x"),
        encoding.payload_hash("c2", "send_message", b"x"),
        encoding.payload_hash("c1", "leave", b"x"),
        encoding.payload_hash("c1", "send_message", b"y"),
    }
    assert len(hashes) == 4


def test_the_payload_hash_stays_what_is_stored():
    """A device may ask again across an upgrade. Of a long action its first 16 bytes count."""
    assert encoding.payload_hash("d_x", "settings_changed_by", b"x").hex() == "55bde17a49a51b95b2a03968b53639af"


@given(st.lists(numbers, min_size=10, max_size=10), st.text(max_size=20), st.booleans())
def test_head_row(values, title, large):
    state = ConversationState("c", kind=1, title=title, large=large)
    state.applied = Position(*values[:3])
    names = ("head_seq", "message_count", "stamp", "version", "last_time_ms", "member_count")
    for name, value in zip(names, values[3:9], strict=True):
        setattr(state, name, value % 2**31)
    expected = HeadRow(kind=1, log_epoch=values[0] % 2**31, partition=values[1] % 2**31, offset=values[2], title=title, large=large)
    state.applied = Position(expected.log_epoch, expected.partition, values[2])
    for name in names:
        setattr(expected, name, getattr(state, name))
    same(encoding.head_row(state), expected)


NEVER_LEFT = {"left_count": 0, "left_time_ms": 0, "left_version": 0, "left_title": "", "left_member_count": 0}
stays = st.lists(st.tuples(numbers, st.one_of(st.just(0), numbers)), min_size=1, max_size=3)
members = st.builds(
    Member,
    stays,
    st.integers(0, 3),
    *[numbers] * 4,
    st.lists(st.builds(OwnRange, numbers, numbers, numbers), max_size=3),
    *[numbers] * 3,
    texts,
    st.integers(0, 2**31 - 1),
).map(lambda member: member if len(member.stays) > 1 or member.stays[0][1] else replace(member, **NEVER_LEFT))


@given(members)
def test_member_row_says_all_of_a_member(member):
    assert member_of(encoding.member_row(member)) == member
    assert MemberRow.FromString(encoding.member_row(member)).role == member.role


@given(members, members, texts, st.integers(0, 2**40))
def test_inbox_row(member, peer, name, spare):
    member.own_after_read = []
    state = ConversationState("c", kind=1, head_seq=7, version=3, last_time_ms=spare)
    state.message_count = member.left_count = member.read_count + 5
    head_seq, count, version, last_time_ms = state.visible_head(member)
    same(
        encoding.inbox_row(state, member, name, peer),
        InboxRow(
            kind=1,
            head_seq=head_seq,
            message_count=count,
            delivered_seq=member.delivered_seq,
            read_seq=member.read_seq,
            unread_count=5,
            peer_user_id=name,
            peer_delivered_seq=peer.delivered_seq,
            peer_read_seq=peer.read_seq,
            version=version,
            last_time_ms=last_time_ms,
            left=not member.active,
        ),
    )


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("last_seq", [0, 9], ids=["there", "left"])
@pytest.mark.parametrize("peer", [Member([(1, 0)], 1, 1, 5, 6, 1), None], ids=["peer", "no peer"])
def test_a_row_says_nothing_twice(large: bool, last_seq: int, peer: Member | None):
    """Readers take the last of a field's values, so only its length tells. Where no number is 0 nothing can be left out."""
    state = ConversationState("c", kind=2, head_seq=7, message_count=7, version=3, last_time_ms=88, title="t", large=large)
    state.member_count, state.stamp, state.applied = 2, 4, Position(1, 2, 3)
    row = encoding.head_row(state)
    assert len(row) == HeadRow.FromString(row).ByteSize()
    member = Member([(1, last_seq)], 1, 1, 2, 3, 3, [OwnRange(4, 4, 4)], left_count=6, left_time_ms=5, left_version=2)
    row = encoding.inbox_row(state, member, "u", peer)
    inbox = InboxRow.FromString(row)
    assert len(row) == inbox.ByteSize()
    assert inbox.unread_count == state.visible_head(member)[1] - 3 - 1
    assert bool(inbox.peer_delivered_seq) is (peer is not None)
