"""How rows and reads are put together for a CQL engine: pure, so that every rule here is tested without one.

A statement costs the driver ~100 us and the engine as much, whatever it carries; a row of one that carries many costs a tenth.
What travels together goes to one set of replicas, so that the node that takes it holds all of it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from chassis.timeline import Point, Row

BATCH_BYTES: Final = 40 * 1024  # Cassandra refuses batches over several partitions from 50 KiB on, by a size of its own counting
ROW_BYTES: Final = 64  # what a row takes beside its own bytes: stamps, lengths, its share of the mutation
IN_KEYS: Final = 64  # ScyllaDB refuses more than 100 values for one IN
POINTS_PRODUCT: Final = 256  # rows that one statement may touch: absent ones are cheap, unwanted ones travel for nothing

ReplicasOf: TypeAlias = Callable[[str], Hashable]
"""Tells which nodes hold a partition; equal values, equal nodes."""


class PointRead(NamedTuple):
    """One statement: every key in every partition, which may be more than was asked for. No keys: from first_key to last_key."""

    table: str
    partitions: list[str]
    keys: list[bytes]
    first_key: bytes = b""
    last_key: bytes = b""


def row_batches(rows: Iterable[Row], replicas_of: ReplicasOf, max_bytes: int = BATCH_BYTES) -> list[list[Row]]:
    """Put rows into batches. All of one (table, partition) stand in one batch, which alone may be larger than `max_bytes`."""
    mutations: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        mutations.setdefault((row.table, row.partition), []).append(row)
    batches: list[list[Row]] = []
    open_batches: dict[Hashable, tuple[list[Row], int]] = {}
    for (_, partition), mutation in mutations.items():
        size = sum(len(row.key) + len(row.value) for row in mutation) + len(mutation) * (len(partition) + ROW_BYTES)
        replicas = replicas_of(partition)
        batch, filled = open_batches.get(replicas, ([], 0))
        if not batch or filled + size > max_bytes:
            batch, filled = [], 0
            batches.append(batch)
        batch.extend(mutation)
        open_batches[replicas] = (batch, filled + size)
    return batches


def point_reads(points: Iterable[Point], replicas_of: ReplicasOf) -> list[PointRead]:
    """Put points into statements. Those of one partition stand in one statement: they are read at one moment."""
    keys_of: dict[tuple[str, str], dict[bytes, None]] = {}
    for table, partition, key in points:
        keys_of.setdefault((table, partition), {})[key] = None
    reads: list[PointRead] = []
    open_reads: dict[Hashable, tuple[PointRead, set[bytes]]] = {}
    for (table, partition), wanted in keys_of.items():
        if len(wanted) > IN_KEYS:
            reads.append(PointRead(table, [partition], [], min(wanted), max(wanted)))
            continue
        place = (table, replicas_of(partition))
        read, keys = open_reads.get(place, (None, set[bytes]()))
        together = keys | wanted.keys()
        if (
            read is None
            or len(read.partitions) == IN_KEYS
            or len(together) > IN_KEYS
            or (len(read.partitions) + 1) * len(together) > max(POINTS_PRODUCT, len(wanted))
        ):
            read, keys, together = PointRead(table, [], []), set(), set(wanted)
            reads.append(read)
        read.partitions.append(partition)
        read.keys.extend(key for key in wanted if key not in keys)
        open_reads[place] = (read, together)
    return reads


def partition_groups(partitions: Iterable[str], replicas_of: ReplicasOf) -> list[list[str]]:
    """Put partitions that are read whole into statements, each partition once."""
    by_replicas: dict[Hashable, list[str]] = {}
    for partition in dict.fromkeys(partitions):
        by_replicas.setdefault(replicas_of(partition), []).append(partition)
    return [chunk for group in by_replicas.values() for chunk in _chunks(group)]


def _chunks(names: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), IN_KEYS):
        yield list(names[start : start + IN_KEYS])
