"""Commands so old that the server may have forgotten them: looked for first, then asked again, or not."""

from outbox_scene import command, outbox, take

from parley_client.outbox_state import LOOK_AFTER_MS, RESEND_SECONDS, Cancel, OutboxState


def test_commands_older_than_7_days_wait_for_catching_up_and_keep_their_order():
    week = 7 * 24 * 3600 * 1000
    box = OutboxState([command("a1", created_ms=0), command("a2", created_ms=week), command("b1", "y", 1)])
    box.start_stream(week + 1)
    assert take(box) == [(1, "b1")]
    assert box.next_due() == RESEND_SECONDS  # of b1
    box.settle(b"b1")
    assert box.next_due() is None  # time alone ends no such hold
    box.on_time(1e12)
    assert take(box) == []
    box.on_caught_up()
    assert take(box) == [(2, "a1"), (3, "a2")]


def test_a_new_command_that_waits_behind_an_old_one_is_cancelled_without_a_word_to_the_server():
    box = OutboxState([command("a1", created_ms=0)])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.add(command("a2", created_ms=LOOK_AFTER_MS))
    assert box.cancel(b"a2") is Cancel.REMOVED
    assert box.take_skips() == []


def test_catching_up_ends_no_hold_of_a_refusal():
    box = OutboxState([command("a1", created_ms=0), command("b1", "y", LOOK_AFTER_MS)])
    box.start_stream(LOOK_AFTER_MS + 1)
    take(box)
    box.on_retry(b"b1", 1, "y", until=9.0)
    assert box.looked_for() == {"x": 0}
    box.on_caught_up()
    assert take(box) == [(2, "a1")]
    assert box.next_due() == 9.0


def test_an_old_command_that_catching_up_showed_is_not_resent():
    box = OutboxState([command("a1", created_ms=0)])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.settle(b"a1")
    box.on_caught_up()
    assert take(box) == []
    assert box.take_skips() == []


def test_old_commands_are_looked_for_from_the_oldest_of_each_conversation_on():
    times = {"a1": LOOK_AFTER_MS, "a2": 5, "a3": 9, "b1": LOOK_AFTER_MS}
    box = OutboxState([command(name, name[0], created_ms) for name, created_ms in times.items()])
    box.start_stream(LOOK_AFTER_MS + 10)
    assert box.looked_for() == {"a": 5}
    box.settle(b"a2")
    assert box.looked_for() == {"a": 9}
    box.on_caught_up()
    assert box.looked_for() == {}


def test_an_old_command_that_a_later_one_overtook_was_refused_and_is_not_resent():
    box = OutboxState([command(name, name[0], created_ms=0) for name in ("a1", "a2", "b1", "a3")])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.settle(b"a2", stored=True)
    assert [refused.request_id for refused in box.on_caught_up()] == [b"a1"]
    assert take(box) == [(1, "b1"), (2, "a3")]


def test_what_overtook_an_old_command_is_not_forgotten_when_more_is_stored():
    box = OutboxState([command(name, name[0], created_ms=0) for name in ("a1", "a2", "b1")])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.settle(b"a2", stored=True)
    box.settle(b"b1", stored=True)
    assert [refused.request_id for refused in box.on_caught_up()] == [b"a1"]


def test_which_commands_are_overtaken_is_told_once_to_whoever_keeps_it():
    box = OutboxState([command(name, name[0], created_ms=0) for name in ("a1", "b1", "a2", "a3", "a4", "a5")])
    box.start_stream(LOOK_AFTER_MS + 1)
    settled = [box.settle(name, stored=stored) for name, stored in ((b"a3", True), (b"a4", False), (b"a5", True), (b"a5", True))]
    assert [each and (each.command.request_id, each.overtaken) for each in settled] == [
        (b"a3", [b"a1", b"a2"]),
        (b"a4", []),
        (b"a5", []),
        None,
    ]


def test_an_old_command_that_was_overtaken_before_a_restart_is_not_resent():
    kept = [command("a1"), command("b1", "b")]
    kept[0].overtaken = True
    box = OutboxState(kept)
    box.start_stream(LOOK_AFTER_MS + 1)
    assert [refused.request_id for refused in box.on_caught_up()] == [b"a1"]
    assert take(box) == [(1, "b1")]


def test_an_old_command_behind_which_another_was_refused_is_asked_again():
    box = OutboxState([command(name, name[0], created_ms=0) for name in ("a1", "a2")])
    box.start_stream(LOOK_AFTER_MS + 1)
    box.settle(b"a2")
    assert box.on_caught_up() == []
    assert take(box) == [(1, "a1")]


def test_a_command_of_this_stream_is_not_old():
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.settle(b"a2", stored=True)
    assert box.on_caught_up() == []


def test_a_young_command_that_was_overtaken_is_asked_again():
    """The server knows what it decided, and says it."""
    box = outbox(command("a1"), command("a2"))
    take(box)
    box.settle(b"a2", stored=True)
    again = OutboxState(box.pending.values())
    for each in (box, again):  # as after a reconnect, and after a restart
        each.start_stream(1)
        assert each.on_caught_up() == []
        assert take(each) == [(1, "a1")]
