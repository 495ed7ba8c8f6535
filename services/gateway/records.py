"""Command records, put together from encoded parts: what is the same for a whole session is encoded once.

Protobuf reads concatenated encodings as one message, so a record is its origin's fields, its conversation's and its body's.
"""

from typing import Final

from parley.api.v1.events_pb2 import Ack
from parley.log.v1.records_pb2 import CommandRecord
from parley_protocol.frames import field
from parley_protocol.limits import RULES_VERSION

CALL_PREFIX: Final = "call-"  # of the session_id of a call that waits: what it is told tells its device's stream nothing


def _tag(name: str) -> bytes:
    return bytes((CommandRecord.DESCRIPTOR.fields_by_name[name].number << 3 | 2,))  # one byte: numbers are below 16


_CONVERSATION_TAG: Final = _tag("conversation_id")
_COMMAND_TAG: Final = _tag("command")
_ACK_TAG: Final = _tag("ack")
_NO_DEVICE: Final = _tag("device_id") + b"\x00"


def origin_fields(*, user_id: str, device_id: str, gateway_id: str, session_id: str, member_cap: int) -> bytes:
    """Encode what all records of a session (or one waiting call) have in common."""
    return CommandRecord(
        rules_version=RULES_VERSION,
        user_id=user_id,
        device_id=device_id,
        gateway_id=gateway_id,
        session_id=session_id,
        member_cap=member_cap,
    ).SerializeToString()


def of_no_device(origin: bytes) -> bytes:
    """Return origin fields that name no device: the last of repeated fields counts."""
    return origin if origin.endswith(_NO_DEVICE) else origin + _NO_DEVICE


def command_record(origin: bytes, conversation_key: bytes, command: bytes) -> bytes:
    """Return an encoded CommandRecord that holds an encoded RawCommand."""
    return origin + field(_CONVERSATION_TAG, conversation_key) + field(_COMMAND_TAG, command)


def ack_record(origin: bytes, conversation_id: str, delivered_seq: int, read_seq: int) -> bytes:
    """Return an encoded CommandRecord that holds watermarks."""
    ack = Ack(conversation_id=conversation_id, delivered_seq=delivered_seq, read_seq=read_seq).SerializeToString()
    return origin + field(_CONVERSATION_TAG, conversation_id.encode()) + field(_ACK_TAG, ack)
