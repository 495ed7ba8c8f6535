"""Logs and tables outlive programs: what the released protos wrote, the present ones read whole, and the other way round."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from parley.api.v1 import commands_pb2, events_pb2
from parley.log.v1 import records_pb2
from parley.store.v1 import rows_pb2

RELEASED = Path(__file__).parents[2] / "protos" / "released.binpb"
WRITTEN = [  # what lies in topics and tables
    message
    for module in (records_pb2, rows_pb2, commands_pb2, events_pb2)
    for message in vars(module).values()
    if isinstance(message, type) and issubclass(message, Message)
]
DEPTH = 6  # deeper than any record nests


def released_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in FileDescriptorSet.FromString(RELEASED.read_bytes()).file:
        pool.Add(file)
    return pool


POOL = released_pool()


def released(message: type[Message]) -> type[Message] | None:
    """Return the class as it was released, if it was."""
    try:
        descriptor = POOL.FindMessageTypeByName(message.DESCRIPTOR.full_name)
    except KeyError:
        return None
    return message_factory.GetMessageClass(descriptor)


def scalar(field: FieldDescriptor) -> Any:
    """Return a value that is not the default, another one for each field."""
    number = field.number + 1
    if field.type == FieldDescriptor.TYPE_ENUM:
        return max(field.enum_type.values_by_number)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\xff\x00%d" % number
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"ü{number}"
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return number + 0.5
    return number


def fill(message: Message, descriptor: Descriptor, choice: int, depth: int = DEPTH) -> None:
    """Set every field, of each oneof the one that `choice` says."""
    if not depth or descriptor.full_name.startswith("google.protobuf."):  # those have rules of their own, and never change
        return
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.fields[choice % len(oneof.fields)] is not field:
            continue
        if field.message_type is None:
            if field.is_repeated:
                getattr(message, field.name).extend([scalar(field)] * 2)
            else:
                setattr(message, field.name, scalar(field))
        elif field.is_repeated:
            fill(getattr(message, field.name).add(), field.message_type, choice, depth - 1)
        else:
            getattr(message, field.name).SetInParent()
            fill(getattr(message, field.name), field.message_type, choice, depth - 1)


def unknown(message: Message) -> Iterator[str]:
    """Yield where a message holds what its class does not know."""
    if len(UnknownFieldSet(message)):
        yield message.DESCRIPTOR.full_name
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from unknown(each)


def choices(descriptor: Descriptor, depth: int = DEPTH) -> int:
    """Return how many variants the widest oneof of a message has."""
    own = max((len(oneof.fields) for oneof in descriptor.oneofs), default=1)
    below = [choices(field.message_type, depth - 1) for field in descriptor.fields if field.message_type is not None and depth]
    return max([own, *below])


@pytest.mark.parametrize("present", WRITTEN, ids=lambda message: message.DESCRIPTOR.full_name)
def test_what_was_written_by_the_last_release_is_read_whole(present: type[Message]) -> None:
    before = released(present)
    if before is None:
        return  # new since: nobody wrote it
    for choice in range(choices(before.DESCRIPTOR)):
        old = before()
        fill(old, before.DESCRIPTOR, choice)
        new = present.FromString(old.SerializeToString(deterministic=True))
        assert list(unknown(new)) == []
        assert MessageToDict(new, use_integers_for_enums=True) == MessageToDict(old, use_integers_for_enums=True)


@pytest.mark.parametrize("present", WRITTEN, ids=lambda message: message.DESCRIPTOR.full_name)
def test_what_is_written_now_passes_through_the_last_release_unharmed(present: type[Message]) -> None:
    """While services are replaced one by one, older ones read and hand on what newer ones wrote."""
    before = released(present)
    if before is None:
        return
    for choice in range(choices(present.DESCRIPTOR)):
        new = present()
        fill(new, present.DESCRIPTOR, choice)
        through = before.FromString(new.SerializeToString()).SerializeToString()
        assert present.FromString(through) == new


def test_there_is_something_to_compare() -> None:
    known = {message.DESCRIPTOR.name for message in WRITTEN if released(message) is not None}
    assert {"CommandRecord", "EventBatch", "HeadRow", "MemberRow", "DedupeRow", "InboxRow", "Event", "Command"} <= known
