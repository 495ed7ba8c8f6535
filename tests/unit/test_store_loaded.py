"""What a store makes of a record of the log before anything is decided: parsed, under its own key, with what names its request."""

import pytest

from chassis.eventlog import LogRecord
from parley.api.v1.commands_pb2 import SendMessage
from parley_protocol.ids import direct_conversation_id
from services.store import rows
from services.store.loaded import item_of
from services.store.seen_keys import key_hash
from tests.unit.store_scene import T0, ack_record, command_record, request_id

AB = direct_conversation_id("alice", "bob")


def raw(record, *, key=AB) -> LogRecord:
    return LogRecord(7, T0, key.encode(), record.SerializeToString())


def test_a_command_bears_the_key_of_its_request():
    record = command_record("alice", SendMessage(body=b"x"), number=3, to="bob")
    item = item_of(raw(record))
    assert item is not None
    key = rows.request_key("d1", request_id(3))
    assert item == (7, T0, record, key, key_hash(key))


def test_an_ack_has_no_request():
    record = ack_record("alice", AB, read=1)
    item = item_of(raw(record))
    assert item is not None
    assert item == (7, T0, record, b"", 0)


@pytest.mark.parametrize(
    "record", [ack_record("alice", AB, read=1), command_record("alice", SendMessage(body=b"x"), number=1, to="bob")]
)
def test_a_record_under_the_key_of_another_conversation_is_none(record):
    assert item_of(raw(record, key=direct_conversation_id("alice", "carol"))) is None


def test_what_does_not_parse_is_none():
    assert item_of(LogRecord(7, T0, AB.encode(), b"\xff")) is None
