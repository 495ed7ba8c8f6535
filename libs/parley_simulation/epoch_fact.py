"""Which log the simulated tables belong to: a row of theirs, the greater epoch wins, as in `chassis.timeline_cql_schema`."""

from chassis import log_epoch
from chassis.timeline import Point, Row, Timeline

FACTS = "cluster_fact"  # a table beside the store's
FIRST_EPOCH = 1  # of each simulated log; tables that say nothing of it belong to none
_EPOCH = Point(FACTS, "log_epoch", b"")


async def raise_epoch(timeline: Timeline, epoch: int) -> None:
    """Record an epoch; a lower one than the recorded has no effect. Raises TimelineUnavailableError."""
    await timeline.write([Row(*_EPOCH, str(epoch).encode(), stamp=epoch)])


async def wait_superseded(timeline: Timeline) -> int:
    """Ask as a store does, which serves the first epoch, until the tables belong to a later one; return that."""

    async def read_epoch() -> int:
        return int((await timeline.read_points([_EPOCH])).get(_EPOCH, b"0"))

    return await log_epoch.wait_superseded(read_epoch, FIRST_EPOCH)
