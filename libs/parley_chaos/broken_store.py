"""A store that is broken on purpose: it lets the offset pass before it writes. Chaos has to find that out.

`python -m parley_chaos.broken_store`; nobody runs it but `parley chaos --broken` and the tests. It runs on the sources, which
can be broken: only a store that is started as such takes compiled modules.
"""

import asyncio
from typing import Final

from chassis.eventlog import LogBatch, LogConsumer, LogRecord
from services.store.__main__ import main
from services.store.apply import Applier

_LATE_SECONDS: Final = 0.7  # longer than it takes to commit, so that a kill falls between: a slow database does the same

_taken: dict[int, list[LogRecord]] = {}  # by partition: committed, and not written yet


async def process(self: Applier, consumer: LogConsumer, batch: LogBatch) -> None:
    """Commit, then write: what comes meanwhile together, so that all else is as it should be, its pace included."""
    consumer.done(batch)
    if batch.partition in _taken:
        _taken[batch.partition] += batch.records
        return
    _taken[batch.partition] = list(batch.records)
    while _taken[batch.partition]:
        await asyncio.sleep(_LATE_SECONDS)
        records, _taken[batch.partition] = _taken[batch.partition], []
        await self.apply(LogBatch(batch.partition, records))
    del _taken[batch.partition]


if __name__ == "__main__":
    Applier._process = process  # type: ignore[method-assign]
    main()
