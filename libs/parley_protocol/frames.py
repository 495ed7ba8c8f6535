"""Frames as concatenated fields: pass stored bytes on without decoding them.

Protobuf encodes a repeated message field as (tag, length, bytes) an element, wherever it stands. So one encoded Event, with its tag
in ServerBatch in front, is stored or built once and joined into every frame that carries it.
"""

_LENGTH_DELIMITED = 2


def _prefix(field_number: int) -> bytes:
    return bytes([field_number << 3 | _LENGTH_DELIMITED])  # one byte: all our numbers are below 16


OUTCOME_TAG = _prefix(1)
EVENT_TAG = _prefix(2)
RECEIPT_TAG = _prefix(3)
INBOX_CHANGE_TAG = _prefix(4)
HEARTBEAT_FIELD = _prefix(7) + b"\x00"
DIGEST_CHECK_TAG = _prefix(8)
DIGEST_TAG = _prefix(8)  # in DeviceBatch
_BATCH_TAG = _prefix(2)  # ConnectResponse.batch


_SMALL = tuple(
    bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80, number >> 7)) for number in range(0x4000)
)  # one or two bytes: lengths and most seqs, looked up because every message needs twenty
_MORE = tuple(bytes((number & 0x7F | 0x80, number >> 7 | 0x80)) for number in range(0x4000))  # the two lowest of more than two


def varint(number: int) -> bytes:
    """Encode a number >= 0 as protobuf does."""
    if number < 0x4000:
        return _SMALL[number]
    return _MORE[number & 0x3FFF] + varint(number >> 14)


def field(tag: bytes, message: bytes) -> bytes:
    """Return an encoded message as an element of a repeated field."""
    return tag + varint(len(message)) + message


def server_batch_frame(fields: bytes) -> bytes:
    """Wrap encoded fields of a ServerBatch into an encoded ConnectResponse."""
    return _BATCH_TAG + varint(len(fields)) + fields
