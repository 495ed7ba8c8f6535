"""What a client sends and what it tells from its own commands."""

from random import Random
from uuid import UUID

import pytest

from parley.api.v1 import commands_pb2 as c
from parley.api.v1 import events_pb2 as e
from parley.api.v1.messaging_service_pb2 import ConnectRequest
from parley_client.commands import check_size, event_of, new_request_id, target_of, with_target
from parley_client.device_frames import batch_frame, hello_frame, skips_frame
from parley_client.errors import InvalidCommandError
from parley_client.notices import Board, CaughtUp, ConversationChanged, Missed
from parley_protocol.ids import direct_conversation_id, group_conversation_id


def test_request_ids_are_version_7_uuids_in_the_order_of_time():
    rng = Random(1)
    ids = [new_request_id(ms, rng) for ms in (1_700_000_000_000, 1_700_000_000_001, 1_800_000_000_000)]
    assert ids == sorted(ids)
    assert {UUID(bytes=request_id).version for request_id in ids} == {7}
    assert {UUID(bytes=request_id).variant for request_id in ids} == {"specified in RFC 4122"}
    assert len({new_request_id(0, rng) for _ in range(1000)}) == 1000


def test_frames_are_what_the_generated_classes_read():
    command = c.Command(request_id=b"1" * 16, to_user_id="bob", send_message=c.SendMessage(body=b"\x00"))
    frame = ConnectRequest.FromString(batch_frame(300, [command.SerializeToString()] * 2, [("x", 5, 0)]))
    assert frame.batch.first_command_number == 300
    assert list(frame.batch.commands) == [command, command]
    assert list(frame.batch.acks) == [e.Ack(conversation_id="x", delivered_seq=5)]
    assert not frame.batch.HasField("heartbeat")
    assert ConnectRequest.FromString(batch_frame(0, (), ())).batch.HasField("heartbeat")
    assert ConnectRequest.FromString(skips_frame([(7, "x")])).batch.skips[0].number == 7
    assert ConnectRequest.FromString(hello_frame("d1", "test")).hello.device_id == "d1"


def test_a_command_belongs_to_a_conversation_also_where_it_names_none():
    group = c.Command(request_id=b"1" * 16, create_group=c.CreateGroup())
    assert target_of(c.Command(to_user_id="bob"), "alice", "d1") == direct_conversation_id("bob", "alice")
    assert target_of(c.Command(conversation_id="x"), "alice", "d1") == "x"
    assert target_of(group, "alice", "d1") == group_conversation_id("alice", "d1", b"1" * 16)


@pytest.mark.parametrize(
    ("user", "conversation"),
    [(None, None), ("bob", "d_" + "a" * 26), ("no id", None), ("", None), (None, "x"), (None, "d_" + "A" * 26)],
)
def test_a_target_that_can_never_be_valid_is_refused_at_once(user: str | None, conversation: str | None):
    with pytest.raises(InvalidCommandError):
        with_target(c.Command(), user, conversation)


def test_a_command_whose_frame_would_end_the_stream_is_refused_at_once():
    check_size(c.Command(send_message=c.SendMessage(body=bytes(16 * 1024))))
    with pytest.raises(InvalidCommandError):
        check_size(c.Command(send_message=c.SendMessage(body=bytes(300 * 1024))))


def test_only_of_a_message_the_event_is_known_without_asking():
    accepted = c.Accepted(conversation_id="x", seq=3, message_count=2)
    message = c.Command(request_id=b"1" * 16, send_message=c.SendMessage(body=b"hi", mentions=["bob"]))
    event = event_of(message, accepted, "alice", "d1")
    assert event is not None
    assert (event.seq, event.message_count, event.message.body, list(event.message.mentions)) == (3, 2, b"hi", ["bob"])
    assert event_of(c.Command(leave=c.Leave()), accepted, "alice", "d1") is None


async def test_a_slow_reader_of_notices_loses_the_oldest_and_is_told_how_many():
    board = Board(capacity=2)
    stream = board.open()
    for name in "abcde":
        board.put(ConversationChanged(name))
    assert [await anext(stream) for _ in range(3)] == [Missed(3), ConversationChanged("d"), ConversationChanged("e")]
    board.put(CaughtUp())
    board.end()
    assert [notice async for notice in stream] == [CaughtUp()]
