"""Tables that hold the conversations of scenes, and count what they are asked."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from chassis.clock import SystemClock
from chassis.embedded import open_embedded_engines
from chassis.timeline import Cell, Row, Timeline
from services.store import rows
from tests.unit.store_scene import Scene

BUCKET_BITS = 1  # two events a bucket: most pages cross buckets


class Asked:
    """A timeline that counts what it is asked, and which rows of inboxes it gave."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.count = 0
        self.inbox_rows = 0

    def __getattr__(self, name: str) -> Any:
        self.count += 1
        return getattr(self._timeline, name)

    async def read_partitions(self, table: str, partitions: Sequence[str], limit: int = 0) -> Mapping[str, Sequence[Cell]]:
        self.count += 1
        found = await self._timeline.read_partitions(table, partitions, limit)
        self.inbox_rows += sum(map(len, found.values())) if table == rows.INBOX else 0
        return found

    async def read_range(self, table: str, *where: Any) -> Sequence[Cell]:
        self.count += 1
        found = await self._timeline.read_range(table, *where)
        self.inbox_rows += len(found) if table == rows.INBOX else 0
        return found


def rows_of(scene: Scene) -> list[Row]:
    """Return all rows of a conversation, those of requests left out."""
    state = scene.state
    for user in state.members:
        state.touch_member(user)
        state.touch_inbox(user)
    events = [rows.event_row(state.conversation_id, seq, event, seq, BUCKET_BITS) for seq, event in scene.events.items()]
    found = [*events, *rows.inbox_rows(state), *rows.state_rows(state)]
    rows.clear_dirty(state)
    return found


@asynccontextmanager
async def open_tables(*scenes: Scene) -> AsyncIterator[Asked]:
    async with open_embedded_engines(None, topics={}, durable_topics=(), tables=rows.TABLES, clock=SystemClock()) as engines:
        for scene in scenes:
            await engines.timeline.write(rows_of(scene))
        yield Asked(engines.timeline)
