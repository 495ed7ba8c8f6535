"""What the judge counts and says: how often it looked, how many violations one mistake is, and which message it names."""

from collections import Counter

import pytest
from clean_history import ALICE, ALICE_2, BOB, CAROL, DIRECT, GROUP, clean_history

from parley_checker.guarantees import Guarantee
from parley_checker.history import Answered, Asked, Device, Entry, History, Shown, View
from parley_checker.judge import judge
from parley_checker.verdict import Fault, Verdict
from parley_protocol.ids import direct_conversation_id

DAVE = Device("dave", "d1")


def put(history: History, *entries: Entry) -> None:
    """Let each reading of the tables hold the entries, too."""
    for reading in history.readings.values():
        for entry in entries:
            reading.setdefault(entry.conversation_id, []).append(entry)  # type: ignore[attr-defined]


def say(history: History, device: Device, entry: Entry) -> None:
    """Let a device ask for what is stored, and get its answer."""
    own = history.devices[device]
    own.asked.append(Asked(entry.request_id, entry.conversation_id, entry.kind, entry.body))
    own.answered.append(Answered(entry.request_id, entry.conversation_id, entry.seq))
    put(history, entry)


def only(verdict: Verdict, fault: Fault, guarantee: Guarantee, count: int = 1) -> str:
    """Return the one story of the one mistake."""
    assert verdict.faults == {fault: count}
    assert verdict.broken == {guarantee: count}
    (story,) = verdict.stories
    head = f"G{guarantee.value} {fault.value}: "
    assert story.startswith(head)
    return story.removeprefix(head)


def test_everything_is_looked_at():
    judged = judge(clean_history()).judged
    each = (Guarantee.STORED, Guarantee.ONCE, Guarantee.INTACT, Guarantee.CONTIGUOUS, Guarantee.SENDERS_ORDER)
    assert [judged[guarantee] for guarantee in each] == [12] * 5
    shown = sum(len(own.shown) for own in clean_history().devices.values())
    assert [judged[each] for each in (Guarantee.ONE_ORDER, Guarantee.SHOWN_ONCE, Guarantee.MEMBERS_ONLY)] == [shown] * 3
    assert judged[Guarantee.COMPLETE] == 3 * 6 + 3 * 6 + 3 + 2, "two conversations on three devices, and both stays of carol"
    assert [judged[each] for each in (Guarantee.READ_YOUR_WRITES, Guarantee.WATERMARKS, Guarantee.UNREAD)] == [1, 3, 3]


def test_a_gap_is_told_with_its_first_place():
    history = History(readings={"api": {GROUP: [Entry(GROUP, seq, DAVE, b"%d" % seq, "message", b"") for seq in (1, 3, 6)]}})
    story = only(judge(history), Fault.GAPS, Guarantee.CONTIGUOUS, 3)
    assert story == f"{GROUP} holds nothing at seq 2 though its head is 6"
    del history.readings["api"][GROUP][0]  # type: ignore[attr-defined]
    assert judge(history).stories == [f"G4 gaps: {GROUP} holds nothing at seq 1 though its head is 6"]


def test_a_place_that_was_read_twice_hides_nothing_of_what_follows():
    history = clean_history()
    timeline = history.readings["api"][DIRECT]
    timeline.insert(1, timeline[0])  # type: ignore[attr-defined]
    assert only(judge(history), Fault.DUPLICATED, Guarantee.ONE_ORDER) == f"{DIRECT} seq 1 was read twice"


def test_what_was_read_out_of_order_is_told():
    history = clean_history()
    timeline = history.readings["api"][DIRECT]
    timeline[1], timeline[2] = timeline[2], timeline[1]  # type: ignore[index]
    assert only(judge(history), Fault.MISORDERED, Guarantee.ONE_ORDER) == f"{DIRECT} seq 2 was read after seq 3"


def test_what_is_stored_twice_is_told_with_both_places():
    history = clean_history()
    put(history, history.readings["api"][DIRECT][0]._replace(seq=7))
    (story,) = (story for story in judge(history).stories if "duplicated" in story)
    name = f"message alice/a1 {history.readings['api'][DIRECT][0].request_id.hex()} ({DIRECT} seq 7)"
    assert story == f"G2 duplicated: {DIRECT} holds {name} also as seq 1"


def test_a_reading_without_a_conversation_disagrees_in_all_of_it():
    history = clean_history()
    del history.readings["files"][DIRECT]  # type: ignore[attr-defined]
    verdict = judge(history)
    assert verdict.faults == {Fault.DISAGREEING: 6}
    truth = history.readings["api"][DIRECT][0]
    assert verdict.stories[0] == f"G5 disagreeing: {DIRECT} seq 1: files says None, not {truth}"


def test_a_conversation_that_the_tables_do_not_know_holds_nothing_and_nobody():
    history = clean_history()
    for conversation in ("g_" + "b" * 26, direct_conversation_id("alice", "carol")):
        history.devices[ALICE].asked.append(Asked(b"q" * 16, conversation, "message", b"anybody there?"))
        history.devices[ALICE].scrolled.add(conversation)
    verdict = judge(history)
    assert verdict.kept
    assert (verdict.unanswered, verdict.stored) == (2, 12)
    history.devices[ALICE].answered.append(Answered(b"q" * 16, conversation, 4))
    name = f"alice/a1 {(b'q' * 16).hex()} in {conversation}"
    assert only(judge(history), Fault.LOST, Guarantee.STORED) == f"{name} was accepted as seq 4 and is not stored"


def test_a_timeline_that_no_device_knows_of_is_judged_too():
    history = clean_history()
    put(history, Entry("g_" + "b" * 26, 2, DAVE, b"x", "message", b""))
    only(judge(history), Fault.GAPS, Guarantee.CONTIGUOUS)


def test_a_device_that_showed_nothing_at_all_lost_everything():
    history = clean_history()
    history.devices[ALICE_2].shown.clear()
    verdict = judge(history)
    assert verdict.faults == {Fault.LOST: 12}
    direct, _ = verdict.stories
    name = f"message alice/a1 {history.readings['api'][DIRECT][0].request_id.hex()} ({DIRECT} seq 1)"
    assert direct == f"G7 lost: alice/a2 never showed {name} nor 5 others"


def test_members_without_a_device_owe_nothing():
    history = clean_history()
    del history.devices[CAROL]
    assert judge(history).kept


@pytest.mark.parametrize("shows", [True, False])
def test_whoever_never_answered_is_a_user_of_his_conversation_all_the_same(shows: bool):
    history = clean_history()
    entry = Entry(direct_conversation_id("alice", "dave"), 1, ALICE, b"d" * 16, "message", b"hi")
    say(history, ALICE, entry)
    for device in (ALICE_2, DAVE) if shows else (ALICE_2,):
        history.device(*device).shown.append(Shown(1, entry))
    history.device(*DAVE).settled = True
    assert judge(history).faults == ({} if shows else {Fault.LOST: 1})


def test_who_writes_to_somebody_that_nobody_recorded_is_judged_alone():
    history = clean_history()
    say(history, ALICE, Entry(direct_conversation_id("alice", "erin"), 1, ALICE, b"e" * 16, "message", b"hi"))
    assert only(judge(history), Fault.LOST, Guarantee.COMPLETE).startswith("alice/a2 never showed message")


def test_who_is_added_again_has_one_stay_that_ends_once():
    history = clean_history()
    added = Entry(GROUP, 7, ALICE, b"7" * 16, "members_added", b"", joined=("bob", "carol"))
    left = Entry(GROUP, 8, CAROL, b"8" * 16, "member_left", b"", left=("carol", "stranger"))
    after = Entry(GROUP, 9, ALICE, b"9" * 16, "message", b"without carol")
    for entry in (added, left, after):
        say(history, entry.actor, entry)
        for device in (ALICE, ALICE_2, BOB, *((CAROL,) if entry is not after else ())):
            if device != entry.actor:
                history.devices[device].shown.append(Shown(1, entry))
    history.devices[BOB].views.clear()
    assert judge(history).kept
    history.devices[CAROL].shown.append(Shown(1, after))
    story = only(judge(history), Fault.LEAKED, Guarantee.MEMBERS_ONLY)
    assert story.startswith("carol/c1 showed message alice/a1 ")


def test_a_view_of_a_device_that_did_not_settle_says_nothing():
    history = clean_history()
    history.devices[BOB].settled = False
    history.devices[BOB].views[0] = View(DIRECT, 1, 1, 1, 1)
    assert judge(history).kept


def test_what_was_asked_for_in_vain_hides_no_turned_order():
    history = clean_history()
    asked = history.devices[ALICE].asked
    asked[0], asked[1] = asked[1], asked[0]
    asked.insert(0, Asked(b"v" * 16, DIRECT, "message", b"in vain"))
    verdict = judge(history)
    assert verdict.judged[Guarantee.SENDERS_ORDER] == 12
    name = f"message alice/a1 {history.readings['api'][DIRECT][0].request_id.hex()} ({DIRECT} seq 1)"
    assert only(verdict, Fault.MISORDERED, Guarantee.SENDERS_ORDER) == f"{name} was asked for after what is stored as seq 3"


def test_asking_twice_for_the_same_turns_no_order_round():
    history = clean_history()
    asked = history.devices[ALICE].asked
    asked.insert(0, asked[0])
    assert judge(history).kept


def test_answers_to_what_nobody_recorded_as_asked_are_judged():
    history = clean_history()
    del history.devices[BOB].asked[:]
    verdict = judge(history)
    assert verdict.acked == 12
    assert verdict.faults == {Fault.INVENTED: 5}
    assert verdict.stories[0].endswith(f" ({DIRECT} seq 2) is stored, its device never asked for it")
    history.devices[BOB].answered.append(Answered(b"gone" * 4, DIRECT, 7))
    assert judge(history).faults == {Fault.INVENTED: 5, Fault.LOST: 1}


def test_commands_that_nobody_recorded_hide_no_changed_body_behind_them():
    history = clean_history()
    del history.devices[ALICE]
    for reading in history.readings.values():
        reading[DIRECT][1] = reading[DIRECT][1]._replace(body=b"changed")  # type: ignore[index]
    for own in history.devices.values():
        own.shown[:] = [shown for shown in own.shown if shown.entry.seq != 2 or shown.entry.conversation_id != DIRECT]
    verdict = judge(history)
    assert verdict.judged[Guarantee.INTACT] == 7 - 1, "bob's five and carol's one"
    assert verdict.faults[Fault.CORRUPTED] == 1


def test_an_outcome_may_be_told_twice_and_counts_once():
    history = clean_history()
    answered = history.devices[ALICE].answered
    answered.insert(1, answered[0])
    verdict = judge(history)
    assert verdict.kept
    assert verdict.acked == 12
    answered.insert(2, answered[0]._replace(seq=5))
    name = f"alice/a1 {answered[0].request_id.hex()} in {DIRECT}"
    assert only(judge(history), Fault.CONTRADICTED, Guarantee.ONCE) == f"{name} was answered 5 after 1 (0: rejected)"


def test_rejections_are_counted_and_hide_nothing_behind_them():
    history = clean_history()
    for request_id in (b"1" * 16, b"2" * 16):
        history.devices[ALICE].asked.append(Asked(request_id, DIRECT, "message", b"refused"))
        history.devices[ALICE].answered.insert(0, Answered(request_id, DIRECT, 0))
    verdict = judge(history)
    assert verdict.kept
    assert (verdict.acked, verdict.rejected, verdict.unanswered) == (12, 2, 0)
    answered = history.devices[ALICE].answered
    answered[2] = answered[2]._replace(seq=0)
    name = f"alice/a1 {answered[2].request_id.hex()} in {DIRECT}"
    assert judge(history).stories[0] == f"G2 contradicted: {name} was rejected and is stored as seq 1"


@pytest.mark.parametrize("seq", [2, 99])
def test_an_answer_with_another_place_is_told_with_both(seq: int):
    """Also where somebody else's command of the same request_id stands there: ids are a device's own."""
    history = clean_history()
    answered = history.devices[ALICE].answered
    answered[0] = answered[0]._replace(seq=seq)
    for reading in history.readings.values():
        reading[DIRECT][1] = reading[DIRECT][1]._replace(request_id=answered[0].request_id)  # type: ignore[index]
    (story,) = (story for story in judge(history).stories if "contradicted" in story)
    name = f"alice/a1 {answered[0].request_id.hex()} in {DIRECT}"
    assert story == f"G1 contradicted: {name} was accepted as seq {seq} and is stored as seq 1"


def test_what_is_shown_and_stored_nowhere_or_otherwise_is_told():
    history = clean_history()
    shown = history.devices[BOB].shown
    real = shown[0].entry
    shown[0] = Shown(1, real._replace(body=b"tampered"))
    name = f"message alice/a1 {real.request_id.hex()} ({DIRECT} seq 1)"
    assert only(judge(history), Fault.DISAGREEING, Guarantee.ONE_ORDER) == f"bob/b1 showed {name}, stored is {name}"
    history = clean_history()
    history.devices[BOB].shown.append(Shown(1, real._replace(seq=7)))
    verdict = judge(history)
    assert verdict.faults == Counter({Fault.DISAGREEING: 1, Fault.LEAKED: 1})
    assert verdict.stories[0].endswith("stored is nothing")


def test_what_a_device_showed_is_told_out_of_order_or_twice():
    history = clean_history()
    shown = history.devices[BOB].shown
    first, second = shown[0].entry, shown[1].entry
    shown[0], shown[1] = shown[1], shown[0]
    name = f"message alice/a1 {first.request_id.hex()} ({DIRECT} seq 1)"
    assert only(judge(history), Fault.MISORDERED, Guarantee.ONE_ORDER) == f"bob/b1 showed {name} after seq {second.seq}"
    shown[:2] = [Shown(1, first), Shown(1, first), Shown(1, second)]
    assert only(judge(history), Fault.DUPLICATED, Guarantee.SHOWN_ONCE) == f"bob/b1 showed {name} twice"


def test_who_scrolled_owes_what_follows_the_first_that_he_showed():
    history = clean_history()
    newcomer = history.device("bob", "b2")
    newcomer.settled = True
    newcomer.scrolled = {DIRECT, GROUP}
    assert judge(history).kept
    timeline = history.readings["api"][DIRECT]
    newcomer.shown = [Shown(1, entry) for entry in (timeline[2], timeline[4], timeline[5])]
    name = f"message bob/b1 {timeline[3].request_id.hex()} ({DIRECT} seq 4)"
    assert only(judge(history), Fault.LOST, Guarantee.COMPLETE) == f"bob/b2 never showed {name} nor 0 others"
