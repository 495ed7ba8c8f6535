"""What the store's rules say at their bounds, and what they tell of records that they meet again."""

from dataclasses import astuple

import pytest

from chassis.errors import reason_of
from parley.api.v1.commands_pb2 import AddMembers, CreateGroup, Leave, RemoveMember, Role
from parley.store.v1.rows_pb2 import InboxRow, MemberRow
from parley_protocol.frames import varint
from parley_protocol.limits import RULES
from services.store.actions import UndecidableError
from services.store.decide import Effect, Fate, needs_count, needs_first_event
from services.store.encoding import member_row, payload_hash
from services.store.state import DIRECT, OwnRange, Position
from tests.unit.store_scene import AB, T0, Scene, ack_record, act, command_record, group_scene, outcome_of, say, text


@pytest.fixture
def direct() -> Scene:
    return Scene(AB)


@pytest.fixture
def group() -> Scene:
    return group_scene("bob", "carol", title="team")


def group_of(count: int) -> Scene:
    """Make a group of so many members, alice among them."""
    return group_scene(*(f"u{number}" for number in range(1, count)))


def test_a_request_id_is_remembered_to_the_end_of_its_14_days(direct):
    say(direct, "alice", 1)
    direct.now_ms += 14 * 24 * 3600 * 1000
    assert outcome_of(say(direct, "alice", 1)).accepted.duplicate
    direct.now_ms += 1
    assert not outcome_of(say(direct, "alice", 1)).accepted.duplicate


def test_a_request_id_is_remembered_where_log_time_has_jumped_back_by_up_to_a_week(direct):
    say(direct, "alice", 1)
    direct.now_ms -= 7 * 24 * 3600 * 1000
    assert outcome_of(say(direct, "alice", 1)).accepted.duplicate
    direct.now_ms -= 1
    assert not outcome_of(say(direct, "alice", 1)).accepted.duplicate


def test_a_resend_is_told_the_count_of_then(group):
    first = outcome_of(say(group, "alice", 2)).accepted
    say(group, "bob", 3)
    again = outcome_of(say(group, "alice", 2)).accepted
    assert (first.seq, first.message_count) == (again.seq, again.message_count) == (2, 1)


def test_a_first_message_replies_to_nothing(direct):
    refused = outcome_of(direct.apply(command_record("alice", text(reply_to_seq=1), number=1, to="bob"))).rejected
    assert reason_of(refused) == "REPLY_TARGET_INVALID"
    assert not direct.state.exists


def test_a_1_1_is_one_of_two_who_never_change(direct):
    say(direct, "alice", 1)
    assert direct.inbox("alice") == InboxRow(kind=DIRECT, head_seq=1, message_count=1, peer_user_id="bob", last_time_ms=T0)
    row = InboxRow(kind=DIRECT, head_seq=1, message_count=1, unread_count=1, peer_user_id="alice", last_time_ms=T0)
    assert direct.inbox("bob") == row
    row = MemberRow.FromString(member_row(direct.state.members["bob"]))
    assert row == MemberRow(stays=[{"first_seq": 1}], role=Role.ROLE_MEMBER, role_seq=1)
    assert direct.state.member_count == 2
    say(direct, "bob", 2, seen_seq=1)
    assert (direct.inbox("alice").peer_delivered_seq, direct.inbox("alice").peer_read_seq) == (1, 1)
    assert direct.inbox("bob").version == 0


def test_a_body_may_have_all_the_bytes_that_the_rules_allow(direct):
    largest = text(bytes(RULES[1].body_bytes))
    assert outcome_of(direct.apply(command_record("alice", largest, number=1, to="bob"))).accepted.seq == 1


def test_up_to_32_recipients_are_named_with_those_who_leave(group):
    small, full = group_of(32), group_of(33)
    for scene, number in ((small, 2), (small, 3)):
        effect = say(scene, "alice", number)
        assert (len(effect.recipients), effect.all_members) == (32, False)
        again = scene.apply(
            command_record("alice", text(b"m%d" % number), number=number, conversation=scene.state.conversation_id),
            offset=number - 1,
        )
        assert (again.recipients, again.all_members) == (effect.recipients, False)
    effect = act(full, "u1", 2, Leave())  # the 33rd is told, too
    assert (effect.recipients, effect.all_members) == ([], True)
    effect = act(full, "u2", 3, Leave())
    assert (len(effect.recipients), effect.all_members) == (32, False)


def test_who_reads_up_to_the_midst_of_his_own_messages_has_the_rest_of_them_not_unread(direct):
    for number in range(1, 6):
        say(direct, "alice", number)
    alice = direct.state.members["alice"]
    for read, own in ((3, 2), (5, 0)):
        direct.apply(ack_record("alice", AB, read=read))
        assert (alice.own_count(), direct.state.unread_count(alice)) == (own, 0)
    say(direct, "alice", 6)
    say(direct, "bob", 7)
    assert direct.state.unread_count(alice) == 1


def test_messages_of_one_in_a_row_are_one_range_of_own_ones(direct):
    for number in range(1, 400):
        say(direct, "alice", number)
    alice = direct.state.members["alice"]
    assert alice.own_after_read == [OwnRange(1, 399, 399)]
    assert alice.read_seq == 0, "only answers to others say that he has read"


def test_stamps_follow_log_time_and_grow(direct):
    assert say(direct, "alice", 1).stamp == T0 * 1000
    assert say(direct, "alice", 2).stamp == T0 * 1000 + 1
    direct.now_ms += 1
    assert say(direct, "alice", 3).stamp == (T0 + 1) * 1000


def test_who_is_there_is_not_gathered_for_every_message(group):
    present = group.state.present
    say(group, "alice", 2)
    assert group.state.present is present


def test_a_replay_to_more_than_32_names_nobody():
    scene = group_of(33)
    first = say(scene, "alice", 2)
    again = scene.apply(command_record("alice", text(b"m2"), number=2, conversation=scene.state.conversation_id), offset=1)
    assert (first.recipients, first.all_members) == (again.recipients, again.all_members) == ([], True)


def test_receipts_are_pushed_in_groups_of_up_to_32():
    scene = group_of(32)
    effect = scene.apply(ack_record("u1", scene.state.conversation_id, delivered=1, read=1))
    assert effect.shared
    assert len(effect.recipients) == 31


def test_a_replay_tells_again_what_the_command_read(group):
    conversation = group.state.conversation_id
    say(group, "alice", 2)
    first = say(group, "bob", 3, seen_seq=2)
    again = group.apply(command_record("bob", text(b"m3"), number=3, conversation=conversation, seen_seq=2), offset=2)
    assert (again.shared, again.actor, again.own) == (first.shared, first.actor, first.own)
    act(group, "alice", 4, RemoveMember(user_id="carol"))
    later = group.apply(command_record("bob", text(b"m3"), number=3, conversation=conversation, seen_seq=2), offset=2)
    assert "carol" in later.recipients
    assert not later.actor, "who left must not learn of later watermarks"


def test_what_was_seen_before_is_told_once(direct):
    say(direct, "alice", 1)
    assert say(direct, "bob", 2, seen_seq=1).actor
    assert direct.state.unread_count(direct.state.members["bob"]) == 0
    assert not say(direct, "bob", 3, seen_seq=1).actor
    assert not say(direct, "bob", 4).actor


def test_a_replayed_rejection_is_told_again(group):
    first = say(group, "dave", 5)
    say(group, "alice", 6)
    again = group.apply(command_record("dave", text(b"m5"), number=5, conversation=group.state.conversation_id), offset=1)
    assert (again.own, again.shared, again.seq, again.fate) == (first.own, b"", 0, None)


def test_a_replayed_ack_tells_the_watermarks_again(direct):
    say(direct, "alice", 1)
    first = direct.apply(ack_record("bob", AB, delivered=1, read=1))
    again = direct.apply(ack_record("bob", AB, delivered=1, read=1), offset=1)
    assert (again.shared, again.actor, again.recipients) == (first.shared, first.actor, ["alice"])


def test_who_left_may_still_say_that_he_has_read_a_part_of_what_is_his(group):
    for number in range(2, 5):
        say(group, "alice", number)
    act(group, "alice", 5, RemoveMember(user_id="bob"))
    bob = group.state.members["bob"]
    for read in (2, 3):
        assert group.apply(ack_record("bob", group.state.conversation_id, read=read)).actor
        assert (bob.delivered_seq, bob.read_seq, bob.read_count) == (read, read, read - 1)
    assert group.apply(ack_record("bob", group.state.conversation_id, delivered=4)).actor
    assert (bob.delivered_seq, bob.read_seq) == (4, 3)
    say(group, "alice", 6)
    assert group.apply(ack_record("bob", group.state.conversation_id, read=6)).actor
    assert (bob.delivered_seq, bob.read_seq, bob.read_count) == (5, 5, 3)


def test_a_replay_whose_answer_is_gone_says_nothing(direct):
    say(direct, "alice", 1)
    direct.fates.clear()
    assert direct.apply(command_record("alice", text(b"m1"), number=1, to="bob"), offset=0) is None


def test_delivered_follows_read_and_either_moves_alone(direct):
    for number in range(1, 4):
        say(direct, "alice", number)
    bob = direct.state.members["bob"]
    assert direct.apply(ack_record("bob", AB, delivered=1, read=0)).actor
    assert (bob.delivered_seq, bob.read_seq) == (1, 0)
    direct.apply(ack_record("bob", AB, delivered=0, read=2))
    assert (bob.delivered_seq, bob.read_seq) == (2, 2)
    direct.apply(ack_record("bob", AB, delivered=3))
    say(direct, "alice", 4)
    direct.apply(ack_record("bob", AB, delivered=4))
    direct.apply(ack_record("bob", AB, delivered=1, read=3))
    assert (bob.delivered_seq, bob.read_seq) == (4, 3)
    say(direct, "bob", 5, seen_seq=4)
    assert (bob.delivered_seq, bob.read_seq) == (4, 4)


def test_an_action_may_have_all_the_bytes_that_the_rules_allow(group):
    limit = RULES[1].command_bytes
    action = AddMembers(user_ids=["dave"]).SerializeToString()
    filler = limit - len(action) - 5  # an unknown field with a tag of two bytes and a length of three
    for size, allowed in ((filler, True), (filler + 1, False)):
        record = command_record("alice", AddMembers(), number=size, conversation=group.state.conversation_id)
        record.command.add_members = action + b"\xba\x3e" + varint(size) + bytes(size)
        assert (len(record.command.add_members) <= limit) is allowed
        if allowed:
            assert outcome_of(group.apply(record)).accepted.seq == 2
        else:
            with pytest.raises(UndecidableError):
                group.apply(record)


def test_what_deciding_may_ask_of_the_past(direct, group):
    """The store loads it before: too little is a KeyError, too much a read for nothing."""
    say(direct, "alice", 1)
    say(direct, "alice", 2)
    assert not needs_count(direct.state, 1), "nothing but messages"
    say(group, "alice", 2)
    say(group, "alice", 3)
    assert [seq for seq in range(-1, 5) if needs_count(group.state, seq)] == [1, 2]
    create = command_record("alice", CreateGroup(), number=1).command
    message = command_record("alice", text(), number=1, to="bob").command
    assert needs_first_event(create, group.state)
    assert not needs_first_event(create, Scene(AB).state)
    assert not needs_first_event(message, group.state)


def test_a_fate_says_all_that_a_resend_is_answered_by(group):
    conversation = group.state.conversation_id
    say(group, "alice", 2)
    effect, refused = say(group, "alice", 3), say(group, "eve", 4)
    payload = text(b"m3").SerializeToString()
    assert effect.fate == Fate(Position(1, 0, 2), T0, payload_hash(conversation, "send_message", payload), 3, 2, b"")
    status = outcome_of(refused).rejected.SerializeToString()
    payload = text(b"m4").SerializeToString()
    assert refused.fate == Fate(Position(1, 0, 3), T0, payload_hash(conversation, "send_message", payload), 0, 0, status)
    assert refused.stamp > effect.stamp > 0
    assert (refused.event, refused.shared, refused.recipients, refused.wakes) == (b"", b"", [], False)


def test_an_effect_is_nothing_but_what_is_said():
    nothing = (0, b"", None, 0, b"", b"", b"", [], False, [], False)
    assert astuple(Effect()) == nothing
