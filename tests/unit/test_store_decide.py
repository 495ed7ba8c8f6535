"""The rules of the store, one by one."""

import pytest

from chassis.errors import reason_of
from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, ChangeSettings, CreateGroup, Leave, RemoveMember, Role
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.log.v1.records_pb2 import CommandRecord
from parley_protocol.ids import direct_conversation_id
from services.store import rows
from services.store.actions import UndecidableError
from services.store.decide import DEDUPE_MS, NewerRulesError, decide
from services.store.state import NewerEpochError, Position
from tests.unit.store_scene import AB, T0, Scene, ack_record, act, command_record, group_scene, outcome_of, request_id, say, text

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def direct() -> Scene:
    return Scene(AB)


@pytest.fixture
def group() -> Scene:
    return group_scene("bob", "carol", title="team")


def rejection(effect) -> str:
    outcome = outcome_of(effect)
    assert outcome.WhichOneof("result") == "rejected"
    return reason_of(outcome.rejected)


def test_the_first_message_creates_the_conversation_at_seq_1(direct):
    effect = say(direct, "alice", 1)
    accepted = outcome_of(effect).accepted
    assert (accepted.conversation_id, accepted.seq, accepted.message_count, accepted.duplicate) == (AB, 1, 1, False)
    assert accepted.time.ToMilliseconds() == T0
    event = direct.event(1)
    assert (event.actor_user_id, event.actor_device_id, event.message.body) == ("alice", "d1", b"m1")
    assert (event.seq, event.message_count, event.request_id) == (1, 1, request_id(1))
    assert effect.recipients == ["alice", "bob"]
    assert effect.wakes


def test_unknown_fields_of_an_action_reach_the_event_unchanged(direct):
    record = command_record("alice", text(), number=1, to="bob")
    record.command.send_message += b"\xba\x3e\x03new"  # field 999
    direct.apply(record)
    assert direct.events[1].endswith(b"\xba\x3e\x03new")


def test_a_resend_is_answered_as_the_first_time_and_takes_no_seq(direct):
    say(direct, "alice", 1)
    direct.now_ms += 13 * DAY_MS
    again = say(direct, "alice", 1)
    accepted = outcome_of(again).accepted
    assert (accepted.seq, accepted.duplicate, accepted.time.ToMilliseconds()) == (1, True, T0)
    assert not again.event
    assert not again.shared
    assert direct.state.head_seq == 1


def test_a_request_id_is_forgotten_after_14_days_of_log_time(direct):
    say(direct, "alice", 1)
    direct.now_ms += DEDUPE_MS + 1
    assert outcome_of(say(direct, "alice", 1)).accepted.seq == 2


def test_a_request_id_with_another_payload_is_refused(direct):
    say(direct, "alice", 1)
    assert rejection(direct.apply(command_record("alice", text(b"other"), number=1, to="bob"))) == "REQUEST_ID_REUSED"


def test_the_same_request_id_on_another_device_is_another_request(direct):
    say(direct, "alice", 1)
    assert outcome_of(say(direct, "alice", 1, device="d2")).accepted.seq == 2


def test_a_rejection_is_sticky_even_when_it_would_be_allowed_now(group):
    assert rejection(say(group, "dave", 5)) == "CONVERSATION_NOT_FOUND"
    act(group, "alice", 6, AddMembers(user_ids=["dave"]))
    assert rejection(say(group, "dave", 5)) == "CONVERSATION_NOT_FOUND"
    assert outcome_of(say(group, "dave", 7)).accepted.seq == 3


def test_a_rejection_moves_nothing(group):
    before = (group.state.head_seq, group.state.applied, group.state.stamp)
    say(group, "dave", 5)
    assert (group.state.head_seq, group.state.applied, group.state.stamp) == before


def test_a_record_that_was_applied_publishes_its_event_again_and_writes_nothing(direct):
    first = say(direct, "alice", 1)
    say(direct, "bob", 2)
    state = (direct.state.head_seq, direct.state.applied, direct.state.stamp)
    again = direct.apply(command_record("alice", text(b"m1"), number=1, to="bob"), offset=0)
    assert (again.seq, again.shared, again.own) == (first.seq, first.shared, first.own)
    assert again.recipients == first.recipients
    assert first.membership_changes == again.membership_changes == []
    assert not again.event
    assert again.fate is None
    assert (direct.state.head_seq, direct.state.applied, direct.state.stamp) == state


def test_a_half_written_record_is_decided_again_alike():
    """Its dedupe row is there, the state is not: the row with this very position is the record's own."""
    record = command_record("alice", text(), number=1, to="bob")
    whole = Scene(AB)
    first = whole.apply(record)
    half = Scene(AB)
    half.fates, half.events = whole.fates, whole.events
    again = half.apply(record)
    assert (again.event, again.own, again.fate, again.stamp) == (first.event, first.own, first.fate, first.stamp)


def test_a_dedupe_row_of_a_later_position_does_not_answer_an_earlier_record(direct):
    """Another worker is ahead and has written the row of a resend that this one has not reached."""
    record = command_record("alice", text(), number=1, to="bob")
    ahead = Scene(AB)
    ahead.apply(record, offset=7)
    direct.fates = ahead.fates
    assert outcome_of(direct.apply(record)).accepted.duplicate is False


def test_stamps_grow_where_log_time_jumps_back(direct):
    stamps = []
    for number, now_ms in enumerate((T0, T0 - 3_600_000, T0 + 3_600_000, T0)):
        direct.now_ms = now_ms
        stamps.append(say(direct, "alice", number).stamp)
    assert stamps == sorted(set(stamps))


def test_a_state_of_a_newer_log_epoch_stops_the_store(direct):
    say(direct, "alice", 1)
    direct.state.applied = Position(2, 0, 0)
    with pytest.raises(NewerEpochError):
        say(direct, "alice", 2)


def test_a_state_of_an_older_log_epoch_counts_as_not_applied(direct):
    say(direct, "alice", 1)
    direct.state.applied = Position(0, 0, 1000)
    assert outcome_of(say(direct, "alice", 2)).accepted.seq == 2


def test_newer_rules_stop_the_store(direct):
    record = command_record("alice", text(), number=1, to="bob")
    record.rules_version = 2
    with pytest.raises(NewerRulesError):
        direct.apply(record)


def broken(change) -> CommandRecord:
    record = command_record("alice", text(), number=1, to="bob")
    change(record)
    return record


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.ClearField("body"),
        lambda record: record.command.ClearField("action"),
        lambda record: setattr(record, "rules_version", 0),
        lambda record: setattr(record.command, "send_message", b"\xff\xff"),
        lambda record: setattr(record.command, "send_message", text(b"x" * 16385).SerializeToString()),
        lambda record: setattr(record.command, "send_message", b"x" * 300_000),
        lambda record: setattr(record.command, "to_user_id", "carol"),
        lambda record: setattr(record.command, "create_group", b""),
    ],
)
def test_what_can_never_be_decided_raises_and_changes_nothing(direct, change):
    with pytest.raises(UndecidableError):
        direct.apply(broken(change))
    assert not direct.state.exists
    assert not direct.fates


def test_strangers_do_not_learn_whether_a_conversation_exists(group):
    missing = Scene("g_" + "a" * 26)
    assert rejection(say(group, "eve", 9)) == rejection(say(missing, "eve", 9)) == "CONVERSATION_NOT_FOUND"


def test_replies_name_what_the_sender_can_see(group):
    act(group, "alice", 2, AddMembers(user_ids=["dave"]))
    conversation = group.state.conversation_id
    say(group, "alice", 3)
    for number, (user, seq, allowed) in enumerate(
        [("dave", 3, True), ("alice", 1, True), ("dave", 1, False), ("dave", 2, True), ("dave", 99, False), ("dave", -1, False)], 10
    ):
        effect = group.apply(command_record(user, text(reply_to_seq=seq), number=number, conversation=conversation))
        if allowed:
            assert outcome_of(effect).accepted.seq, seq
        else:
            assert rejection(effect) == "REPLY_TARGET_INVALID", seq


def test_a_group_is_created_once_whatever_the_age_of_the_repetition():
    record = command_record("alice", CreateGroup(title="team", member_user_ids=["bob", "bob", "alice"]), number=1)
    scene = Scene(record.conversation_id)
    assert outcome_of(scene.apply(record)).accepted.seq == 1
    assert list(scene.event(1).group_created.member_user_ids) == ["alice", "bob"]
    scene.now_ms += 100 * DAY_MS
    accepted = outcome_of(scene.apply(record)).accepted
    assert (accepted.seq, accepted.message_count, accepted.duplicate, accepted.time.ToMilliseconds()) == (1, 0, True, T0)
    other = command_record("alice", CreateGroup(title="other"), number=1)
    assert rejection(scene.apply(other)) == "CONVERSATION_EXISTS"


def test_the_member_cap_travels_in_the_record(group):
    assert rejection(act(group, "alice", 2, AddMembers(user_ids=["d", "e"]), member_cap=4)) == "GROUP_FULL"
    assert outcome_of(act(group, "alice", 3, AddMembers(user_ids=["d", "e"]), member_cap=5)).accepted.seq == 2
    full = Scene("g_x")
    record = command_record("alice", CreateGroup(member_user_ids=["b", "c"]), number=9, member_cap=2)
    full.state.conversation_id = record.conversation_id
    assert rejection(full.apply(record)) == "GROUP_FULL"


OWNER, ADMIN, MEMBER = Role.ROLE_OWNER, Role.ROLE_ADMIN, Role.ROLE_MEMBER


@pytest.mark.parametrize(
    ("actor", "action", "reason"),
    [
        ("carol", AddMembers(user_ids=["dave"]), "ROLE_TOO_LOW"),
        ("carol", RemoveMember(user_id="bob"), "ROLE_TOO_LOW"),
        ("bob", RemoveMember(user_id="alice"), "ROLE_TOO_LOW"),
        ("bob", RemoveMember(user_id="bob"), "NO_CHANGE"),
        ("bob", RemoveMember(user_id="zed"), "TARGET_NOT_A_MEMBER"),
        ("bob", ChangeRole(user_id="carol", role=ADMIN), "ROLE_TOO_LOW"),
        ("alice", ChangeRole(user_id="carol", role=MEMBER), "NO_CHANGE"),
        ("alice", ChangeRole(user_id="alice", role=MEMBER), "NO_CHANGE"),
        ("alice", ChangeRole(user_id="zed", role=ADMIN), "TARGET_NOT_A_MEMBER"),
        ("alice", AddMembers(user_ids=["bob", "carol"]), "ALREADY_A_MEMBER"),
        ("carol", ChangeSettings(title="mine"), "ROLE_TOO_LOW"),
        ("alice", ChangeSettings(title="team"), "NO_CHANGE"),
        ("alice", ChangeSettings(), "NO_CHANGE"),
        ("zed", Leave(), "CONVERSATION_NOT_FOUND"),
    ],
)
def test_what_a_role_may_not_do(group, actor, action, reason):
    act(group, "alice", 2, ChangeRole(user_id="bob", role=ADMIN))
    assert rejection(act(group, actor, 3, action)) == reason


def test_groups_only_actions_are_refused_in_a_1_1(direct):
    say(direct, "alice", 1)
    for number, action in enumerate(
        (AddMembers(user_ids=["c"]), RemoveMember(user_id="bob"), Leave(), ChangeSettings(title="x")), 2
    ):
        assert rejection(act(direct, "alice", number, action)) == "WRONG_CONVERSATION_KIND"


def test_the_owner_hands_over_and_becomes_admin(group):
    act(group, "alice", 2, ChangeRole(user_id="bob", role=OWNER))
    assert {user: member.role for user, member in group.state.members.items()} == {"alice": ADMIN, "bob": OWNER, "carol": MEMBER}


def test_an_owner_who_leaves_hands_over_to_the_eldest_of_the_highest_role(group):
    act(group, "alice", 2, ChangeRole(user_id="carol", role=ADMIN))
    effect = act(group, "alice", 3, Leave())
    assert group.event(3).member_left.new_owner_user_id == "carol"
    assert group.state.members["carol"].role == OWNER
    assert "alice" in effect.recipients
    assert rejection(say(group, "alice", 4)) == "NOT_A_MEMBER"


def test_the_last_one_may_leave(group):
    for number, user in enumerate(("alice", "bob", "carol"), 2):
        assert outcome_of(act(group, user, number, Leave())).accepted.seq == number
    assert group.state.member_count == 0


def test_a_member_sees_his_stays_and_nothing_else(group):
    say(group, "alice", 2)
    act(group, "alice", 3, RemoveMember(user_id="bob"))
    say(group, "alice", 4)
    act(group, "alice", 5, AddMembers(user_ids=["bob"]))
    bob = group.state.members["bob"]
    assert bob.stays == [(1, 3), (5, 0)]
    assert [seq for seq in range(1, 7) if bob.sees(seq)] == [1, 2, 3, 5, 6]
    assert (bob.read_seq, group.state.unread_count(bob)) == (4, 0)


def test_unread_counts_messages_of_others_above_the_read_watermark(group):
    state = group.state
    for number in range(2, 6):
        say(group, "alice", number)  # seq 2..5
    act(group, "alice", 6, ChangeSettings(title="new"))  # seq 6: no message
    bob = state.members["bob"]
    assert state.unread_count(bob) == 4
    assert state.unread_count(state.members["alice"]) == 0
    group.apply(ack_record("bob", state.conversation_id, delivered=4, read=3))
    assert (state.unread_count(bob), bob.delivered_seq, bob.read_seq) == (2, 4, 3)
    say(group, "bob", 7, seen_seq=3)  # an old message, flushed late: has not read what came meanwhile
    assert state.unread_count(bob) == 2
    say(group, "bob", 8, seen_seq=5)
    assert state.unread_count(bob) == 0


def test_watermarks_only_grow_and_are_clamped_to_the_head(direct):
    for number in range(1, 4):
        say(direct, "alice", number)
    bob = direct.state.members["bob"]
    direct.apply(ack_record("bob", AB, delivered=99, read=2))
    assert (bob.delivered_seq, bob.read_seq) == (3, 2)
    assert direct.apply(ack_record("bob", AB, delivered=1, read=1)) is None
    assert direct.apply(ack_record("bob", AB, delivered=-5, read=-5)) is None
    assert (bob.delivered_seq, bob.read_seq) == (3, 2)
    assert direct.apply(ack_record("eve", AB, delivered=3, read=3)) is None


def test_an_ack_tells_the_others_and_the_readers_devices(direct):
    say(direct, "alice", 1)
    effect = direct.apply(ack_record("bob", AB, delivered=1, read=1))
    assert effect.recipients == ["alice"]
    receipt = ServerBatch.FromString(effect.shared).receipts[0]
    assert (receipt.user_id, receipt.delivered_seq, receipt.read_seq) == ("bob", 1, 1)
    own = ServerBatch.FromString(effect.actor)
    assert own.receipts[0] == receipt
    change = own.inbox_changes[0]
    assert (change.head_seq, change.read_seq, change.unread_count, change.message_count) == (1, 1, 0, 1)


def test_receipts_are_not_pushed_in_groups_over_32():
    users = [f"u{number}" for number in range(32)]
    record = command_record("alice", CreateGroup(member_user_ids=users), number=1)
    scene = Scene(record.conversation_id)
    assert scene.apply(record).all_members
    say(scene, "alice", 2)
    effect = scene.apply(ack_record("u1", record.conversation_id, delivered=2, read=2))
    assert (effect.shared, effect.recipients) == (b"", [])
    assert effect.actor


def test_a_conversation_that_outgrows_50_members_is_large_for_good():
    users = [f"u{number}" for number in range(51)]
    record = command_record("alice", CreateGroup(member_user_ids=users), number=1)
    scene = Scene(record.conversation_id)
    scene.apply(record)
    assert scene.state.large
    for number, user in enumerate(users[:10], 2):
        act(scene, user, number, Leave())
    assert scene.state.large
    before = dict(scene.tables)
    say(scene, "alice", 20)
    changed = {place[0] for place, row in scene.tables.items() if before[place] != row}
    assert changed == {rows.STATE}, "a message of a large group writes no inbox rows"


def test_who_answers_256_times_without_reading_has_read_up_to_the_first_answer(direct):
    number = 0
    for _ in range(257):
        number += 2
        say(direct, "alice", number)
        effect = say(direct, "bob", number + 1)
    assert [receipt.read_seq for receipt in ServerBatch.FromString(effect.own).receipts] == [2]  # his device could not know
    assert [receipt.read_seq for receipt in ServerBatch.FromString(effect.shared).receipts] == [2]
    assert outcome_of(effect).accepted.seq == 514
    bob = direct.state.members["bob"]
    assert len(bob.own_after_read) == 256
    assert (bob.delivered_seq, bob.read_seq) == (2, 2)
    assert direct.state.unread_count(bob) == 256


def test_notes_to_oneself_have_one_member_and_nothing_unread():
    own = Scene(direct_conversation_id("alice", "alice"))
    effect = own.apply(command_record("alice", text(), number=1, to="alice"))
    assert effect.recipients == ["alice"]
    assert own.state.unread_count(own.state.members["alice"]) == 0


def test_a_bug_in_reading_the_past_is_not_hidden(group):
    say(group, "alice", 2)
    del group.events[1]
    with pytest.raises(KeyError):
        decide(
            group.state, ack_record("bob", group.state.conversation_id, read=1), Position(1, 0, 9), T0, group.known(CommandRecord())
        )
