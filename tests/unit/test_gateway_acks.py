"""Watermarks are merged before they become records."""

import asyncio

from prometheus_client import CollectorRegistry

from parley.log.v1.records_pb2 import CommandRecord
from services.gateway.acks import AckMerger
from services.gateway.metrics import Metrics
from services.gateway.records import origin_fields


class Lane:
    """Takes what a partition of the log would, or refuses."""

    def __init__(self) -> None:
        self.crowded = False
        self.records: list[CommandRecord] = []

    def lane_of(self, key: bytes) -> "Lane":
        return self

    def offer(self, key: bytes, record: bytes) -> None:
        self.records.append(CommandRecord.FromString(record))


def origin(device: str) -> bytes:
    return origin_fields(user_id="alice", device_id=device, gateway_id="g1", session_id="s", member_cap=5)


def merger(lane: Lane) -> AckMerger:
    return AckMerger(lane, Metrics(CollectorRegistry()))


async def test_a_burst_becomes_one_record_with_the_highest_watermarks():
    lane = Lane()
    acks = merger(lane)
    for delivered, read in ((1, 0), (3, 1), (2, 2)):
        acks.add("alice", origin("phone"), "c1", delivered, read)
    acks.flush()
    assert [(record.ack.delivered_seq, record.ack.read_seq, record.device_id) for record in lane.records] == [(3, 2, "phone")]


async def test_watermarks_of_two_devices_name_no_device_so_that_both_are_told():
    lane = Lane()
    acks = merger(lane)
    for device in ("phone", "desktop", "phone"):
        acks.add("alice", origin(device), "c1", 1, 1)
    acks.flush()
    assert [(record.user_id, record.device_id, record.gateway_id) for record in lane.records] == [("alice", "", "g1")]


async def test_users_and_conversations_are_kept_apart():
    lane = Lane()
    acks = merger(lane)
    acks.add("alice", origin("phone"), "c1", 1, 1)
    acks.add("alice", origin("phone"), "c2", 2, 2)
    acks.add("bob", origin("phone"), "c1", 3, 3)
    acks.flush()
    assert [(record.conversation_id, record.ack.read_seq) for record in lane.records] == [("c1", 1), ("c2", 2), ("c1", 3)]


async def test_a_crowded_partition_gets_messages_first_and_the_watermarks_later():
    lane = Lane()
    acks = merger(lane)
    lane.crowded = True
    acks.add("alice", origin("phone"), "c1", 1, 1)
    acks.flush()
    assert not lane.records
    acks.add("alice", origin("phone"), "c1", 5, 4)
    lane.crowded = False
    acks.flush()
    assert [record.ack.delivered_seq for record in lane.records] == [5]
    acks.close()


async def test_they_travel_by_themselves_after_a_moment():
    lane = Lane()
    acks = merger(lane)
    written = asyncio.Event()
    lane.offer = lambda key, record: written.set()
    acks.add("alice", origin("phone"), "c1", 1, 1)
    async with asyncio.timeout(5):
        await written.wait()
