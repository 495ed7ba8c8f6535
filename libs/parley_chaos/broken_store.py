"""A store that is broken on purpose: it lets the offset pass before it writes. Chaos has to find that out.

`python -m parley_chaos.broken_store`; nobody runs it but `parley chaos --broken` and the tests.
"""

import asyncio
from collections import defaultdict
from typing import Final

from chassis.eventlog import LogBatch, LogConsumer
from services.store.__main__ import main
from services.store.apply import Applier

_LATE_SECONDS: Final = 0.7  # longer than it takes to commit, so that a kill falls between: a slow database does the same


_turns: Final = defaultdict[int, asyncio.Lock](asyncio.Lock)


async def process(self: Applier, consumer: LogConsumer, batch: LogBatch) -> None:
    """Commit, then write."""
    consumer.done(batch)
    async with _turns[batch.partition]:  # all else is as it should be
        await asyncio.sleep(_LATE_SECONDS)
        await self.apply(batch)


if __name__ == "__main__":
    Applier._process = process  # type: ignore[method-assign]
    main()
