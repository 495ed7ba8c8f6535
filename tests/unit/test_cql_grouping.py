"""How rows and reads are put together for a CQL engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.timeline import Point, Row
from chassis.timeline_cql_grouping import (
    BATCH_BYTES,
    IN_KEYS,
    POINTS_PRODUCT,
    ROW_BYTES,
    partition_groups,
    point_reads,
    row_batches,
)


def one_node(partition: str) -> str:
    return ""


def three_nodes(partition: str) -> int:
    return sum(partition.encode()) % 3


def row(partition: str, key: bytes = b"k", size: int = 100, table: str = "t") -> Row:
    return Row(table, partition, key, bytes(size), 1)


names = st.text("abc", min_size=1, max_size=3)
sizes = st.sampled_from([0, 100, BATCH_BYTES // 3, BATCH_BYTES * 2])
rows_written = st.lists(st.builds(row, names, st.binary(max_size=2), sizes, st.sampled_from("tu")), unique_by=lambda row: row[:3])


@given(rows_written)
def test_batches_hold_every_row_once_whole_partitions_and_one_set_of_replicas(rows: list[Row]) -> None:
    batches = row_batches(rows, three_nodes)
    assert sorted(row for batch in batches for row in batch) == sorted(rows)
    homes: dict[tuple[str, str], int] = {}
    for number, batch in enumerate(batches):
        assert len({three_nodes(row.partition) for row in batch}) == 1
        assert all(homes.setdefault((row.table, row.partition), number) == number for row in batch)
        size = sum(len(row.partition) + len(row.key) + len(row.value) + ROW_BYTES for row in batch)
        assert size <= BATCH_BYTES or len({(row.table, row.partition) for row in batch}) == 1


def test_small_rows_share_a_batch_and_a_large_partition_stays_whole() -> None:
    assert [len(batch) for batch in row_batches([row(f"p{n}") for n in range(200)], one_node)] == [200]
    assert [len(batch) for batch in row_batches([row(f"p{n}", size=10_000) for n in range(10)], one_node)] == [4, 4, 2]
    large = [row("p", b"%d" % n, size=BATCH_BYTES) for n in range(5)]
    assert [len(batch) for batch in row_batches([row("a"), *large, row("b")], one_node)] == [1, 5, 1]


points_read = st.lists(st.builds(Point, st.sampled_from("tu"), names, st.binary(max_size=1)))


@given(points_read)
def test_reads_cover_every_point_and_a_partition_is_read_by_one_of_them(points: list[Point]) -> None:
    reads = point_reads(points, three_nodes)
    homes = [(read.table, partition) for read in reads for partition in read.partitions]
    assert sorted(homes) == sorted({(point.table, point.partition) for point in points})
    for read in reads:
        assert len({three_nodes(partition) for partition in read.partitions}) == 1
        assert len(set(read.keys)) == len(read.keys)
        assert len(read.partitions) <= IN_KEYS
        assert len(read.keys) <= IN_KEYS
        assert len(read.partitions) == 1 or len(read.partitions) * len(read.keys) <= POINTS_PRODUCT
    for table, partition, key in points:
        (read,) = (read for read in reads if read.table == table and partition in read.partitions)
        assert key in read.keys or read.first_key <= key <= read.last_key


def test_the_same_keys_of_many_partitions_are_few_statements() -> None:
    reads = point_reads([Point("t", f"p{n}", b"") for n in range(130)], one_node)
    assert [(len(read.partitions), read.keys) for read in reads] == [(64, [b""]), (64, [b""]), (2, [b""])]
    heads = [Point("t", f"c{n}", key) for n in range(50) for key in (b"", b"me", b"peer%d" % n)]
    assert len(point_reads(heads, one_node)) == 4


@pytest.mark.parametrize(("count", "by_keys"), [(64, True), (65, False), (500, False)])
def test_many_points_of_one_partition_are_one_statement(count: int, by_keys: bool) -> None:
    (read,) = point_reads([Point("t", "p", b"%03d" % n) for n in reversed(range(count))], one_node)
    assert len(read.keys) == (count if by_keys else 0)
    if not by_keys:
        assert (read.first_key, read.last_key) == (b"000", b"%03d" % (count - 1))


def test_partitions_are_asked_for_once_and_by_replicas() -> None:
    groups = partition_groups([f"p{n}" for n in range(300)] + ["p0"], three_nodes)
    assert sorted(name for group in groups for name in group) == sorted(f"p{n}" for n in range(300))
    assert all(len({three_nodes(name) for name in group}) == 1 and len(group) <= IN_KEYS for group in groups)
