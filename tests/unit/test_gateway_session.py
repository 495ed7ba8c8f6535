"""A session's outbox, holds and end."""

import asyncio

from parley.api.v1.commands_pb2 import Outcome
from parley.api.v1.messaging_service_pb2 import ConnectResponse, GoAwayReason
from parley_protocol.frames import OUTCOME_TAG, field
from services.gateway.directory import Directory
from services.gateway.session import MAX_HOLDS, Session
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
        await waiting


async def test_unread_answers_to_bad_frames_are_bounded():
    session = make_session()
    for _ in range(100):
        session.put_control(b"x")
    assert session.goodbye_reason == SLOW


async def test_holds_are_lifted_by_their_own_number_alone():
    session = make_session()
    assert session.hold("x", 3)
    session.skip("x", 2)
    session.skip("y", 3)
    assert session.holds == {"x": 3}
    session.skip("x", 3)
    assert not session.holds


async def test_holds_are_bounded():
    session = make_session()
    assert all(session.hold(f"c{number}", number) for number in range(MAX_HOLDS))
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
