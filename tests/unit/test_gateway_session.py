"""A session's outbox, holds and end."""

import asyncio
import math

from parley.api.v1.commands_pb2 import Outcome
from parley.api.v1.messaging_service_pb2 import ConnectResponse, GoAwayReason
from parley_protocol.frames import OUTCOME_TAG, field
from parley_protocol.ids import direct_conversation_id
from services.gateway.directory import Directory
from services.gateway.session import Session
from services.gateway.tokens import Claims

DRAINING = GoAwayReason.GO_AWAY_REASON_DRAINING
SLOW = GoAwayReason.GO_AWAY_REASON_SLOW


def make_session(user: str = "alice", device: str = "d1", max_fields: int = 100, max_bytes: int = 10_000_000) -> Session:
    session = Session(Claims(user, "", 0), 0.0, max_fields, max_bytes)
    session.device_id = device
    return session


def outcome(number: int, size: int = 16) -> bytes:
    return field(OUTCOME_TAG, Outcome(request_id=number.to_bytes(size, "big")).SerializeToString())


def taken(session: Session) -> list[int]:
    """Return the numbers in the next frame."""
    frame = session.take_frame()
    assert frame is not None
    return [int.from_bytes(outcome.request_id, "big") for outcome in ConnectResponse.FromString(frame).batch.outcomes]


async def test_a_new_session_knows_its_user_and_nothing_was_said_yet():
    session = Session(Claims("alice", "d1", 5_000), 7.0, 100, 1_000)
    assert (session.user_id, session.pinned_device_id, session.expires_ms, session.heard_at) == ("alice", "d1", 5_000, 7.0)
    assert (session.device_id, session.session_id, session.origin, session.bad_frames) == ("", "", b"", 0)
    assert (session.check_at, session.writing_since) == (math.inf, math.inf)
    assert [session.asked, session.differed, session.stuck, session.closed, session.ending] == [False] * 5
    assert (session.failure, session.goodbye_reason) == (None, GoAwayReason.GO_AWAY_REASON_UNSPECIFIED)


async def test_all_that_is_queued_goes_into_one_frame_in_order():
    session = make_session()
    for number in range(5):
        assert session.put(outcome(number))
    assert taken(session) == [0, 1, 2, 3, 4]
    assert session.take_frame() is None
    assert session.outbox_bytes == 0


async def test_large_backlogs_are_cut_into_frames():
    session = make_session()
    for number in range(10):
        session.put(outcome(number, 100_000))
    assert [taken(session) for _ in range(5)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


async def test_a_frame_has_256_kb_at_most():
    half = 128 * 1024
    for put, frames in (([half, half], [2 * half]), ([half, half + 1], [half, half + 1]), ([half, half, 5], [2 * half, 5])):
        session = make_session()
        for size in put:
            session.put(bytes(size))
        for size in frames:
            frame, waiting = session.take_frame(), session.outbox_bytes
            assert frame is not None
            assert frame.endswith(bytes(size))
            assert len(frame) <= size + 4  # a tag and the length
            assert waiting == sum(put) - sum(frames[: frames.index(size) + 1])


async def test_one_thing_larger_than_a_frame_goes_alone():
    session = make_session()
    for number in range(2):
        session.put(outcome(number, 300_000))
    assert [taken(session), taken(session)] == [[0], [1]]


async def test_control_frames_go_first():
    session = make_session()
    session.put(outcome(1))
    session.put_control(b"welcome")
    assert session.take_frame() == b"welcome"


async def test_outbox_over_its_count_or_bytes_ends_the_session_as_slow_and_drops_it():
    for session in (make_session(max_fields=2), make_session(max_bytes=2 * len(outcome(1)))):
        assert session.put(outcome(1))
        assert session.put(outcome(2))
        assert not session.put(outcome(3))
        assert not session.put(outcome(4))
        assert session.outbox_bytes == 0
        frame = session.take_frame()
        assert frame is not None
        assert ConnectResponse.FromString(frame).go_away.reason == SLOW
        assert session.take_frame() is None
        assert session.closed


async def test_goodbye_follows_what_was_queued_and_only_the_first_counts():
    session = make_session()
    session.put(outcome(1))
    assert session.say_goodbye(DRAINING, "x")
    assert not session.say_goodbye(SLOW, "y")
    assert not session.put(outcome(2))
    assert taken(session) == [1]
    frame = session.take_frame()
    assert frame is not None
    assert ConnectResponse.FromString(frame).go_away.reason == DRAINING
    assert not session.closed, "the goodbye is not written yet"
    assert session.take_frame() is None
    assert session.closed
    assert session.ended.done()


async def test_a_goodbye_says_why_and_where_to_and_when():
    session = make_session()
    assert not session.ending
    session.say_goodbye(GoAwayReason.GO_AWAY_REASON_MOVED, "elsewhere", "g2:1", 2.5)
    assert session.ending
    go_away = ConnectResponse.FromString(session.take_frame() or b"").go_away
    assert (go_away.reason, go_away.detail, go_away.address) == (GoAwayReason.GO_AWAY_REASON_MOVED, "elsewhere", "g2:1")
    assert go_away.reconnect_delay.ToMilliseconds() == 2_500


async def test_a_closed_session_takes_nothing_and_says_nothing():
    session = make_session()
    session.put(outcome(1))
    session.put_control(b"welcome")
    session.close(failure := OSError())
    session.close(ValueError())
    assert session.failure is failure
    assert session.ending
    assert not session.put(outcome(2))
    assert not session.say_goodbye(DRAINING, "x")
    assert session.take_frame() is None
    assert (session.outbox_bytes, session.goodbye_reason) == (0, GoAwayReason.GO_AWAY_REASON_UNSPECIFIED)
    session.put_control(b"too late")


async def test_a_goodbye_is_not_said_by_a_session_that_is_closed_and_is_by_one_that_finishes():
    closed, finished = make_session(), make_session()
    for session in (closed, finished):
        session.say_goodbye(DRAINING, "x")
    closed.ended.cancel()  # by who waited for it
    closed.close()
    assert closed.take_frame() is None
    finished.finish()
    go_away = ConnectResponse.FromString(finished.take_frame() or b"").go_away
    assert (go_away.reason, go_away.address) == (DRAINING, "")


async def test_finish_flushes_and_ends_without_a_word():
    session = make_session()
    session.put(outcome(1))
    session.finish()
    assert taken(session) == [1]
    assert session.take_frame() is None
    assert session.closed


async def test_writer_wakes_for_each_reason():
    for act in (
        lambda session: session.put(outcome(1)),
        lambda session: session.put_control(b"x"),
        lambda session: session.say_goodbye(DRAINING, ""),
        lambda session: session.finish(),
        lambda session: session.close(),
    ):
        session = make_session()
        waiting = asyncio.ensure_future(session.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        act(session)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.done()


async def test_a_writer_sleeps_on_for_what_may_wait_for_the_next_frame():
    session = make_session()
    waiting = asyncio.ensure_future(session.wait())
    await asyncio.sleep(0)
    session.put(outcome(1), wake=False)
    await asyncio.sleep(0)
    assert not waiting.done()
    session.put(outcome(2))
    session.put(outcome(3))  # before it had its turn
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done()
    assert taken(session) == [1, 2, 3]


async def test_a_writer_that_is_gone_is_woken_for_nothing():
    session = make_session()
    waiting = asyncio.ensure_future(session.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert session.put(outcome(1))


async def test_unread_answers_to_bad_frames_are_bounded_and_dropped_with_all_else():
    session = make_session()
    for _ in range(32):
        session.put_control(b"x")
    assert not session.ending
    session.put_control(b"x")
    assert session.goodbye_reason == SLOW
    session.put_control(b"one more")
    assert session.take_frame() == b"one more"
    assert ConnectResponse.FromString(session.take_frame() or b"").go_away.reason == SLOW


async def test_ids_of_conversations_with_others_are_remembered_up_to_a_bound():
    session = make_session("alice")
    sizes = []
    for number in [*range(300), *range(300)]:
        assert session.conversation_with(f"u{number}") == direct_conversation_id("alice", f"u{number}")
        sizes.append(len(session._peers or {}))
    assert max(sizes) == 256
    assert session.conversation_with("u299") is session.conversation_with("u299")


async def test_holds_are_lifted_by_their_own_number_alone():
    session = make_session()
    session.skip("x", 3)
    assert session.hold("x", 3)
    session.skip("x", 2)
    session.skip("y", 3)
    assert session.holds == {"x": 3}
    session.skip("x", 3)
    assert not session.holds


async def test_holds_are_bounded():
    session = make_session()
    assert all(session.hold(f"c{number}", number) for number in range(256))
    assert not session.hold("one more", 1)


async def test_directory_keeps_one_session_a_device():
    directory = Directory()
    first, second, third = make_session(), make_session(), make_session(device="d2")
    assert directory.add(first) is None
    assert directory.add(third) is None
    assert directory.add(second) is first
    assert directory.by_user == {"alice": (third, second)}
    assert not directory.remove(first), "the replaced one takes nobody with it"
    assert directory.remove(second)
    assert directory.remove(third)
    assert not directory.by_user
