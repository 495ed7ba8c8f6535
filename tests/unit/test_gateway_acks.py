"""Watermarks are merged before they become records."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.log.v1.records_pb2 import CommandRecord
from services.gateway import acks as module
from services.gateway.acks import AckMerger
from services.gateway.metrics import Metrics
from services.gateway.records import origin_fields


class Lane:
    """Takes what a partition of the log would, or refuses."""

    def __init__(self) -> None:
        self.crowded = self.closed = False
        self.key = b""
        self.records: list[CommandRecord] = []
        self.moments: list[float] = []  # when each came

    def lane_of(self, key: bytes) -> "Lane":
        self.key = key
        return self

    def offer(self, key: bytes, record: bytes) -> float:
        if self.closed:
            return 0.3
        taken = CommandRecord.FromString(record)
        assert key == self.key == taken.conversation_id.encode()
        self.records.append(taken)
        self.moments.append(VirtualClock().monotonic())
        return 0.0


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


def test_the_first_of_a_burst_says_when_all_of_it_is_written():
    async def main(lane: Lane, acks: AckMerger, sleep_until: Callable[[float], Awaitable[None]]) -> None:
        for moment in (0.0, 0.02, 0.03, 0.06):
            await sleep_until(moment)
            acks.add("alice", origin("phone"), "c1", 1, 1)
        await sleep_until(1.0)

    lane, _ = run_merger(main)
    assert lane.moments == pytest.approx([0.04, 0.1])


def test_what_is_written_before_its_time_is_not_written_again_and_the_next_burst_has_a_time_of_its_own():
    async def main(lane: Lane, acks: AckMerger, sleep_until: Callable[[float], Awaitable[None]]) -> None:
        acks.flush()  # nothing is there yet
        acks.add("alice", origin("phone"), "c1", 1, 1)
        await sleep_until(0.01)
        acks.flush()
        await sleep_until(0.02)
        acks.add("alice", origin("phone"), "c1", 2, 2)
        await sleep_until(1.0)

    lane, _ = run_merger(main)
    assert lane.moments == pytest.approx([0.01, 0.06])


@pytest.mark.parametrize("trouble", ["crowded", "closed"])
def test_a_partition_in_trouble_gets_messages_first_and_the_watermarks_half_a_second_later(trouble: str):
    async def main(lane: Lane, acks: AckMerger, sleep_until: Callable[[float], Awaitable[None]]) -> None:
        setattr(lane, trouble, True)
        acks.add("alice", origin("phone"), "c1", 1, 2)
        await sleep_until(0.3)
        assert not lane.records
        setattr(lane, trouble, False)
        acks.add("alice", origin("phone"), "c1", 5, 1)
        await sleep_until(9.0)

    lane, metrics = run_merger(main)
    assert [(record.ack.delivered_seq, record.ack.read_seq, record.device_id) for record in lane.records] == [(5, 2, "phone")]
    assert lane.moments == pytest.approx([0.54])
    assert metrics.get_sample_value("parley_gateway_ack_records_total") == 1


def test_nothing_is_written_after_the_end():
    async def main(lane: Lane, acks: AckMerger, sleep_until: Callable[[float], Awaitable[None]]) -> None:
        acks.close()  # nothing is there yet
        acks.add("alice", origin("phone"), "c1", 1, 1)
        acks.close()
        acks.add("alice", origin("phone"), "c1", 2, 2)
        await sleep_until(9.0)

    lane, _ = run_merger(main)
    assert not lane.records


def test_what_is_taken_dropped_and_written_is_counted(monkeypatch: pytest.MonkeyPatch):
    async def main(lane: Lane, acks: AckMerger, sleep_until: Callable[[float], Awaitable[None]]) -> None:
        for conversation in ("c1", "c2", "c1", "c3", "c2", "c4"):
            acks.add("alice", origin("phone"), conversation, 1, 1)
        await sleep_until(9.0)

    monkeypatch.setattr(module, "_MAX_ENTRIES", 2)
    lane, metrics = run_merger(main)
    assert [record.conversation_id for record in lane.records] == ["c1", "c2"]
    counted = ("acks_taken_total", "acks_dropped_total", "ack_records_total")
    assert [metrics.get_sample_value(f"parley_gateway_{name}") for name in counted] == [4, 2, 2]


Story = Callable[[Lane, AckMerger, Callable[[float], Awaitable[None]]], Awaitable[None]]


def run_merger(story: Story) -> tuple[Lane, CollectorRegistry]:
    """Run a story on virtual time, which begins at 0."""
    lane, registry = Lane(), CollectorRegistry()

    async def sleep_until(moment: float) -> None:
        await asyncio.sleep(moment - VirtualClock().monotonic())

    async def main(_rng: Random) -> None:
        await story(lane, AckMerger(lane, Metrics(registry)), sleep_until)  # type: ignore[arg-type]

    run_virtual(main)
    return lane, registry
