"""Records at which a partition stopped, and what became of them: a small table that every worker loads before it applies.

| table | partition | key -> value |
| partition_stop | log epoch/partition | offset, 8 bytes big-endian -> StopRow |

A row's stage is its write timestamp: it only goes up, whoever writes late. A store writes that it stopped, a person that the
record is skipped, and a store that could apply it after all, mended, says so before its offset passes: nobody can skip it then.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from chassis.eventlog import LogBatch, LogRecord
from chassis.timeline import Point, Row, Timeline
from parley.store.v1.rows_pb2 import StopRow
from services.store.rows import STOP, seq_key
from services.store.state import Position

STOPPED: Final = StopRow.STAGE_STOPPED
SKIPPED: Final = StopRow.STAGE_SKIPPED
APPLIED: Final = StopRow.STAGE_APPLIED


async def load_stops(timeline: Timeline, epoch: int, partition: int) -> dict[int, StopRow]:
    """Read all of a partition, by offset: a handful in its life. Raises TimelineUnavailableError."""
    name = f"{epoch}/{partition}"
    cells = (await timeline.read_partitions(STOP, [name])).get(name, ())
    return {int.from_bytes(cell.key, "big"): StopRow.FromString(cell.value) for cell in cells}


async def read_stop(timeline: Timeline, position: Position) -> StopRow | None:
    """Return what is known of a record, None if no partition ever stopped there. Raises TimelineUnavailableError."""
    point = Point(STOP, f"{position.epoch}/{position.partition}", seq_key(position.offset))
    value = (await timeline.read_points([point])).get(point)
    return None if value is None else StopRow.FromString(value)


async def write_stop(timeline: Timeline, position: Position, stage: StopRow.Stage.ValueType, reason: str) -> None:
    """Write what became of a record; without effect where a later stage is written already. Raises TimelineUnavailableError."""
    value = StopRow(stage=stage, reason=reason).SerializeToString(deterministic=True)
    place = f"{position.epoch}/{position.partition}"
    await timeline.write([Row(STOP, place, seq_key(position.offset), value, stamp=stage)])


def around_skips(batch: LogBatch, stops: Mapping[int, StopRow]) -> Iterator[LogBatch | LogRecord]:
    """Cut a batch into what is to be applied, and the records that are to be skipped, in order."""
    first = 0
    for index, record in enumerate(batch.records):
        stop = stops.get(record.offset)
        if stop is not None and stop.stage == SKIPPED:
            if first < index:
                yield LogBatch(batch.partition, batch.records[first:index])
            yield record
            first = index + 1
    if first < len(batch.records):
        yield LogBatch(batch.partition, batch.records[first:]) if first else batch
