"""What a device shows beside events: watermarks that only rise, and unread counts, its own and those that it is told."""

from timelines_scene import DIRECT, GROUP, ME, PEER, Device, added, created, message, page, removed

from parley.api.v1 import events_pb2 as e
from parley_client.store import Change, Watermarks
from parley_client.store_memory import MemoryStore
from parley_client.timelines import Timelines


def test_unread_counts_messages_of_others_after_what_was_read():
    device = Device()
    device.live(message(1), message(2, ME), message(3))
    assert device.unread() == 2
    device.read(1)
    assert device.unread() == 1
    device.read(3)
    assert device.unread() == 0
    device.read(1)
    assert device.timelines.conversations[DIRECT].read_seq == 3


def test_an_absolute_count_that_runs_ahead_is_not_counted_again_when_its_events_come():
    device = Device()
    device.live(message(1))
    change = Change()
    inbox = e.InboxChange(conversation_id=DIRECT, head_seq=3, message_count=3, unread_count=3)
    assert device.timelines.take_inbox_change(inbox, change)
    device.keep(change)
    assert device.unread() == 3
    assert list(device.timelines.behind) == [DIRECT]
    device.page(DIRECT, page([message(2), message(3)]))
    assert device.unread() == 3
    device.live(message(4))
    assert device.unread() == 4


def test_an_inbox_change_that_is_older_than_what_is_held_is_dropped():
    device = Device()
    device.live(message(1), message(2), message(3))
    device.read(2)
    change = Change()
    assert not device.timelines.take_inbox_change(e.InboxChange(conversation_id=DIRECT, head_seq=3, unread_count=3), change)
    assert not device.timelines.take_inbox_change(
        e.InboxChange(conversation_id=DIRECT, head_seq=2, read_seq=2, delivered_seq=2), change
    )
    assert device.unread() == 1


def holding_the_newest(*seqs: int) -> Device:
    """Return a device that began with the newest messages of a 1-1; all are the peer's, and unread."""
    last = [message(seq) for seq in seqs]
    row = e.Conversation(conversation_id=DIRECT, kind=1, head_seq=seqs[-1], unread_count=seqs[-1], last_events=last)
    row.visible_intervals.add(first_seq=1)
    device = Device()
    device.row(row, new_device=True)
    assert (device.state().first_held_seq, device.state().held_seq, device.unread()) == (seqs[0], seqs[-1], seqs[-1])
    return device


def test_a_row_that_is_older_than_what_is_held_raises_what_was_read_and_counts_what_came_since():
    """The server read the row of a Sync, then its answer was under way while an event came live (seed 3198)."""
    device = Device()
    device.live(message(1), message(2), message(3, ME), message(4))
    assert device.unread() == 3
    device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=3, delivered_seq=3, read_seq=2))
    assert (device.state().delivered_seq, device.state().read_seq, device.unread()) == (3, 2, 1)
    device.live(message(5))
    assert device.unread() == 2
    device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=3, delivered_seq=3, read_seq=1, unread_count=1))
    assert device.unread() == 2, "older than what was read since"


def test_an_inbox_change_that_is_older_than_the_events_of_its_batch_counts_with_them():
    """Nothing but the server's count says what is unread below the newest events that a new device begins with."""
    for read, unread in ((0, 8), (4, 4), (8, 0)):
        device, change = holding_the_newest(7, 8), Change()
        device.live(message(9))
        device.timelines.place_live([message(10, ME), message(11)], change)
        receipt = e.Receipt(conversation_id=DIRECT, user_id=ME, delivered_seq=8, read_seq=read)
        assert device.timelines.take_receipt(receipt, change)
        inbox = e.InboxChange(conversation_id=DIRECT, head_seq=8, delivered_seq=8, read_seq=read, unread_count=unread)
        device.timelines.take_inbox_change(inbox, change)
        device.keep(change)
        assert device.unread() == unread + 2, "and 9 and 11"
        device.live(message(12))
        assert device.unread() == unread + 3


def test_a_count_that_ends_below_what_is_held_is_dropped():
    """What lies between cannot be counted here: the next count will tell."""
    device = holding_the_newest(8, 9)
    assert device.inbox(head_seq=6, delivered_seq=3, read_seq=3, unread_count=3), "the watermark counts"
    assert device.unread() == 9
    assert device.inbox(head_seq=7, delivered_seq=3, read_seq=3, unread_count=4)
    assert device.unread() == 6


def test_a_count_that_runs_ahead_is_not_replaced_by_an_older_one():
    device = holding_the_newest(8, 9)
    device.inbox(head_seq=12, unread_count=12)
    assert not device.inbox(head_seq=8, unread_count=8)
    assert device.unread() == 12
    device.page(DIRECT, page([message(seq) for seq in (10, 11, 12)]))
    assert device.unread() == 12


def test_receipts_only_raise():
    device = Device()
    device.live(message(1), message(2, ME))
    change = Change()
    receipt = e.Receipt(conversation_id=DIRECT, user_id=PEER, delivered_seq=2, read_seq=1)
    assert device.timelines.take_receipt(receipt, change)
    assert not device.timelines.take_receipt(receipt, change)
    assert not device.timelines.take_receipt(e.Receipt(conversation_id=DIRECT, user_id=PEER, delivered_seq=1), change)
    state = device.timelines.conversations[DIRECT]
    assert (state.peer_delivered_seq, state.peer_read_seq) == (2, 1)


def test_a_receipt_that_came_before_its_conversation_counts_once_that_is_known():
    """An older one that comes again afterwards is no news."""
    device = Device()
    early = e.Receipt(conversation_id=DIRECT, user_id=PEER, delivered_seq=2, read_seq=1)
    assert device.timelines.take_receipt(early, Change())
    device.live(message(1), message(2, ME))
    assert not device.timelines.take_receipt(e.Receipt(conversation_id=DIRECT, user_id=PEER, delivered_seq=1), Change())
    state = device.timelines.conversations[DIRECT]
    assert (state.peer_delivered_seq, state.peer_read_seq) == (2, 1)


def test_watermarks_of_others_are_known_after_a_restart():
    known = {(GROUP, PEER): Watermarks(5, 3)}
    timelines = Timelines(watermarks=known, counting=MemoryStore())
    assert timelines.me == "", "whose they are is known with the first token"
    timelines.me = ME
    assert not timelines.take_receipt(e.Receipt(conversation_id=GROUP, user_id=PEER, delivered_seq=5, read_seq=2), Change())
    change = Change()
    assert timelines.take_receipt(e.Receipt(conversation_id=GROUP, user_id=PEER, delivered_seq=6, read_seq=1), change)
    assert change.watermarks == {(GROUP, PEER): Watermarks(6, 3)}
    assert known == {(GROUP, PEER): Watermarks(5, 3)}


def test_a_row_tells_whether_our_watermarks_exceed_the_servers():
    device = Device()
    device.live(message(1), message(2))
    device.read(2)
    assert device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=2, delivered_seq=1, read_seq=1))
    assert not device.row(e.Conversation(conversation_id=DIRECT, kind=1, head_seq=2, delivered_seq=2, read_seq=2))


def test_what_is_read_in_the_step_in_which_it_comes_is_counted_once():
    device = Device()
    device.live(message(1), message(2, ME), message(3))
    change = Change()
    foreign = [created(ME, "carol"), message(2, "carol", GROUP, 1), message(3, "carol", GROUP, 2)]
    unknown = e.Event(conversation_id=DIRECT, seq=6, actor_user_id=PEER)  # of a kind from the future
    device.timelines.place_live([message(4), message(5, ME), unknown, message(7), *foreign], change)
    assert device.timelines.raise_own(DIRECT, 2, 1, change)
    assert device.unread() == 3, "3, 4 and 7"
    assert device.timelines.raise_own(DIRECT, 4, 4, change)
    assert device.unread() == 1
    assert device.unread(GROUP) == 2


def test_what_was_delivered_and_not_read_changes_no_count_that_runs_ahead():
    device = Device()
    device.live(message(1))
    device.inbox(head_seq=3, unread_count=3)
    change = Change()
    assert device.timelines.raise_own(DIRECT, 1, 0, change)
    assert change.conversations == {DIRECT: device.state()}
    assert device.unread() == 3
    device.page(DIRECT, page([message(2)]))
    assert device.unread() == 3


def test_what_was_announced_is_counted_when_it_comes_after_some_was_read():
    device = Device()
    device.live(message(1))
    device.inbox(head_seq=5, unread_count=5)
    device.read(1)
    assert device.unread() == 0
    device.page(DIRECT, page([message(seq) for seq in range(2, 6)]))
    assert device.unread() == 4


def test_a_count_over_what_is_not_held_stays_until_all_is_read():
    device = Device()
    row = e.Conversation(conversation_id=DIRECT, kind=1, head_seq=9, unread_count=8, last_events=[message(8), message(9)])
    device.row(row, new_device=True)
    device.read(3)
    assert device.unread() == 8, "the server tells"
    device.read(9)
    assert device.unread() == 0


def test_a_conversation_of_which_nothing_is_held_can_be_read_elsewhere():
    device = Device()
    device.inbox(head_seq=9, unread_count=4)
    device.read(9)
    assert device.unread() == 0


def test_who_came_back_has_read_what_was_before():
    device = Device()
    device.live(created(ME, "carol"), message(2, "carol", GROUP, 1), message(3, "carol", GROUP, 2), removed(4, ME))
    assert device.unread(GROUP) == 2
    device.page(GROUP, page([added(9, ME)], [(1, 4), (9, 0)]))
    assert device.unread(GROUP) == 0
    device = Device()
    device.live(created(ME, "carol"), message(2, "carol", GROUP, 1), removed(4 - 1, ME))
    change = Change()
    device.timelines.take_inbox_change(e.InboxChange(conversation_id=GROUP, head_seq=10, unread_count=1), change)
    device.page(GROUP, page([added(9, ME), message(10, "carol", GROUP, 2)], [(1, 3), (9, 0)]))
    assert device.unread(GROUP) == 1


def test_a_receipt_of_the_own_user_is_of_another_device():
    device = Device()
    device.live(message(1), message(2), message(3))
    change = Change()
    assert device.timelines.take_receipt(e.Receipt(conversation_id=DIRECT, user_id=ME, delivered_seq=3, read_seq=2), change)
    state = device.state()
    assert (state.delivered_seq, state.read_seq, state.unread_count) == (3, 2, 1)
    assert change.conversations == {DIRECT: state}
    assert not change.watermarks
    assert not device.timelines.take_receipt(e.Receipt(conversation_id=DIRECT, user_id=ME, delivered_seq=3, read_seq=1), change)


def test_each_of_two_watermarks_alone_is_news():
    device = Device()
    device.live(created(ME, PEER), message(2, ME, GROUP, 1))
    for delivered, read, news in ((1, 0, True), (1, 0, False), (1, 1, True), (1, 1, False), (2, 1, True), (2, 0, False)):
        change = Change()
        receipt = e.Receipt(conversation_id=GROUP, user_id=PEER, delivered_seq=delivered, read_seq=read)
        assert device.timelines.take_receipt(receipt, change) is news
        assert bool(change.watermarks) is news
    other = e.Receipt(conversation_id=GROUP, user_id="dave", read_seq=1)
    assert device.timelines.take_receipt(other, Change())


def test_a_receipt_in_a_1_1_is_kept_with_its_conversation():
    device = Device()
    device.live(message(1), message(2, ME))
    change = Change()
    assert device.timelines.take_receipt(e.Receipt(conversation_id=DIRECT, user_id=PEER, read_seq=1), change)
    assert change.conversations == {DIRECT: device.state()}
    assert not change.watermarks


def test_an_inbox_change_is_kept_if_it_changes_something():
    device = Device()
    device.live(message(1), message(2), message(3))
    for delivered, read, unread, changes in ((2, 0, 3, True), (2, 0, 3, False), (2, 0, 1, True), (2, 0, 1, False), (3, 3, 0, True)):
        change = Change()
        inbox = e.InboxChange(conversation_id=DIRECT, head_seq=3, delivered_seq=delivered, read_seq=read, unread_count=unread)
        assert device.timelines.take_inbox_change(inbox, change) is changes
        assert change.conversations == ({DIRECT: device.state()} if changes else {})
        assert (device.state().delivered_seq, device.unread()) == (delivered, unread)
