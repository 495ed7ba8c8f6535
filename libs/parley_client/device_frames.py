"""Encode what a device sends: frames joined from encoded fields, so that a command's bytes are resent exactly as they were kept."""

from collections.abc import Iterable, Sequence

from parley.api.v1 import events_pb2, messaging_service_pb2
from parley_protocol import frames

_FIRST_COMMAND_NUMBER_TAG = b"\x08"  # DeviceBatch: field 1, varint
_COMMAND_TAG = b"\x12"
_SKIP_TAG = b"\x1a"
_ACK_TAG = b"\x22"
_BATCH_TAG = b"\x12"  # ConnectRequest.batch
COMMAND_OVERHEAD_BYTES = 6  # tag and length of one command


def hello_frame(device_id: str, client: str) -> bytes:
    """Return the stream's first frame."""
    hello = messaging_service_pb2.Hello(device_id=device_id, client=client)
    return messaging_service_pb2.ConnectRequest(hello=hello).SerializeToString()


def batch_frame(first_number: int, commands: Sequence[bytes], acks: Sequence[tuple[str, int, int]]) -> bytes:
    """Return a frame of encoded commands, numbered from first_number on, and of watermarks (conversation, delivered, read).

    With neither it is a heartbeat.
    """
    if not commands and not acks:
        return frames.field(_BATCH_TAG, frames.HEARTBEAT_FIELD)
    fields = [_FIRST_COMMAND_NUMBER_TAG + frames.varint(first_number)] if commands else []
    fields += [frames.field(_COMMAND_TAG, command) for command in commands]
    for conversation, delivered, read in acks:
        ack = events_pb2.Ack(conversation_id=conversation, delivered_seq=delivered, read_seq=read)
        fields.append(frames.field(_ACK_TAG, ack.SerializeToString()))
    return frames.field(_BATCH_TAG, b"".join(fields))


def digest_frame(whole: int) -> bytes:
    """Return a frame that says what is held."""
    digest = messaging_service_pb2.Digest(value=whole)
    return frames.field(_BATCH_TAG, frames.field(frames.DIGEST_TAG, digest.SerializeToString()))


def skips_frame(skips: Iterable[tuple[int, str]]) -> bytes:
    """Return a frame that gives up refused commands (number, conversation): a frame of its own comes before the next one."""
    encoded = (messaging_service_pb2.Skip(number=number, conversation_id=conversation) for number, conversation in skips)
    return frames.field(_BATCH_TAG, b"".join(frames.field(_SKIP_TAG, skip.SerializeToString()) for skip in encoded))
