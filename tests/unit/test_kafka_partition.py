"""What a consumer on Kafka knows of a partition: nothing is lost or handed out twice at once, however it moves."""

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chassis.eventlog import LogBatch, LogRecord
from chassis.eventlog_kafka_partition import ConsumedPartition


def records(first: int, last: int) -> list[LogRecord]:
    return [LogRecord(offset, 0, b"k", b"value") for offset in range(first, last + 1)]


def offsets(batch: LogBatch) -> list[int]:
    return [record.offset for record in batch.records]


@pytest.fixture
def partition() -> ConsumedPartition:
    partition = ConsumedPartition(0)
    partition.assign()
    partition.add(records(0, 9))
    return partition


def test_batches_are_in_order_and_hold_the_partition(partition: ConsumedPartition) -> None:
    batch = partition.take(4)
    assert offsets(batch) == [0, 1, 2, 3]
    assert not partition.ready
    partition.done(batch)
    assert (partition.committable, partition.dirty) == (4, True)
    assert offsets(partition.take(100)) == [4, 5, 6, 7, 8, 9]


def test_retry_hands_the_same_out_again(partition: ConsumedPartition) -> None:
    partition.retry(partition.take(4))
    assert (partition.committable, partition.dirty) == (0, False)
    assert offsets(partition.take(2)) == [0, 1]


def test_only_what_is_held_can_be_released(partition: ConsumedPartition) -> None:
    batch = partition.take(1)
    partition.done(batch)
    for release in (partition.done, partition.retry):
        with pytest.raises(ValueError, match="held"):
            release(batch)
    other = partition.take(1)
    with pytest.raises(ValueError, match="held"):
        partition.done(LogBatch(0, list(other.records)))


def test_bytes_that_wait_are_counted(partition: ConsumedPartition) -> None:
    assert partition.buffered_bytes == 60
    batch = partition.take(4)
    assert partition.buffered_bytes == 36
    partition.retry(batch)
    assert partition.buffered_bytes == 60
    partition.revoke()
    assert partition.buffered_bytes == 0


def test_what_is_done_after_the_partition_went_is_nobodys_progress(partition: ConsumedPartition) -> None:
    batch = partition.take(4)
    partition.revoke()
    partition.done(batch)
    assert not partition.dirty


def test_what_was_done_before_it_came_back_is_not_handed_out_again(partition: ConsumedPartition) -> None:
    batch = partition.take(4)
    partition.assign()
    partition.add(records(0, 2))  # from the committed offset, which is behind
    assert not partition.ready
    partition.done(batch)
    assert (partition.committable, partition.dirty) == (4, True)
    partition.add(records(3, 5))
    assert offsets(partition.take(100)) == [4, 5]


def test_what_failed_before_it_came_back_comes_with_what_is_fetched_anew(partition: ConsumedPartition) -> None:
    batch = partition.take(4)
    partition.assign()
    partition.add(records(0, 5))
    partition.retry(batch)
    assert offsets(partition.take(100)) == [0, 1, 2, 3, 4, 5]


class Movement(RuleBasedStateMachine):
    """A log that grows, a group's committed offset, and a partition that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.partition = ConsumedPartition(0)
        self.end = 0
        self.position = 0  # of the fetcher
        self.committed = 0
        self.done: set[int] = set()
        self.held: LogBatch | None = None
        self.handed_out = -1

    @rule(count=st.integers(1, 5))
    def grow(self, count: int) -> None:
        self.end += count

    @rule()
    def assign(self) -> None:
        self.partition.assign()
        self.position = self.committed
        self.handed_out = -1

    @rule()
    def revoke(self) -> None:
        self.partition.revoke()

    @precondition(lambda self: self.partition.owned)
    @rule(count=st.integers(1, 5))
    def fetch(self, count: int) -> None:
        last = min(self.position + count, self.end) - 1
        self.partition.add(records(self.position, last))
        self.position = max(self.position, last + 1)

    @precondition(lambda self: self.partition.ready)
    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        assert self.held is None
        self.held = self.partition.take(count)
        taken: Sequence[int] = offsets(self.held)
        assert list(taken) == list(range(taken[0], taken[-1] + 1))
        if self.handed_out >= 0:
            assert taken[0] <= self.handed_out + 1, "records were left out"
        assert not self.done & set(taken), "what was done is handed out again"
        self.handed_out = taken[-1]

    @precondition(lambda self: self.held is not None)
    @rule(well=st.booleans())
    def release(self, well: bool) -> None:
        assert self.held is not None
        if well:
            self.partition.done(self.held)
            self.done |= set(offsets(self.held))
        else:
            self.partition.retry(self.held)
        self.held = None

    @precondition(lambda self: self.partition.dirty)
    @rule()
    def commit(self) -> None:
        self.committed = max(self.committed, self.partition.committable)
        self.partition.dirty = False

    @invariant()
    def everything_below_the_committed_offset_is_done(self) -> None:
        assert set(range(self.committed)) <= self.done

    @invariant()
    def what_is_not_ours_is_not_handed_out(self) -> None:
        assert self.partition.owned or not self.partition.ready


TestMovement = Movement.TestCase
