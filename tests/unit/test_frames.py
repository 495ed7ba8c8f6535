"""Encoded fields are what protobuf would write."""

import pytest

from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ConnectResponse, DeviceBatch, Heartbeat, ServerBatch
from parley_protocol import frames
from parley_protocol.frames import EVENT_TAG, field, server_batch_frame, varint

EDGES = sorted({(1 << bits) + step for bits in (1, 7, 14, 21, 28, 35, 42, 49, 56, 63) for step in (-1, 0, 1)} - {2**63, 2**63 + 1})


@pytest.mark.parametrize("number", EDGES)
def test_a_number_is_encoded_as_protobuf_does(number):
    assert b"\x10" + varint(number) == Event(seq=number).SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 128, 16_380, 16_384, 70_000])
def test_fields_join_into_a_frame(size):
    event = Event(conversation_id="c" * size)
    frame = server_batch_frame(field(EVENT_TAG, event.SerializeToString()) * 2)
    assert ConnectResponse.FromString(frame) == ConnectResponse(batch=ServerBatch(events=[event, event]))


@pytest.mark.parametrize("batch", [ServerBatch, DeviceBatch])
def test_a_heartbeat_is_the_same_in_both_directions(batch):
    assert batch.FromString(frames.HEARTBEAT_FIELD) == batch(heartbeat=Heartbeat())


@pytest.mark.parametrize(
    ("tag", "batch", "name"),
    [
        (frames.OUTCOME_TAG, ServerBatch, "outcomes"),
        (frames.EVENT_TAG, ServerBatch, "events"),
        (frames.RECEIPT_TAG, ServerBatch, "receipts"),
        (frames.INBOX_CHANGE_TAG, ServerBatch, "inbox_changes"),
        (frames.DIGEST_CHECK_TAG, ServerBatch, "digest_check"),
        (frames.DIGEST_TAG, DeviceBatch, "digest"),
    ],
)
def test_a_tag_names_its_field(tag, batch, name):
    assert tag == varint(batch.DESCRIPTOR.fields_by_name[name].number << 3 | 2)
