"""The tables as they lie in a stopped server's files, read with SQLite alone: a second witness beside the server's own answers."""

import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

from chassis.embedded import TABLES_FILE
from parley.api.v1.events_pb2 import Event
from parley.store.v1.rows_pb2 import HeadRow
from parley_checker.history import Entry, entry_of
from services.store.rows import HEAD_KEY, STATE, TIMELINE


def read_timelines(data_dir: Path) -> dict[str, list[Entry]]:
    """Return every conversation's events up to its head, by seq. The server must have ended, however it did."""
    # Not mode=ro: what a killed server left in the write-ahead log has to be taken in first.
    with closing(sqlite3.connect(data_dir / TABLES_FILE)) as tables:
        states = tables.execute(f"SELECT partition, value FROM rows_{STATE} WHERE key = ?", (HEAD_KEY,))  # noqa: S608  # our constant
        heads = {conversation_id: HeadRow.FromString(value).head_seq for conversation_id, value in states}
        found: dict[str, list[Entry]] = defaultdict(list)
        for partition, value in tables.execute(f"SELECT partition, value FROM rows_{TIMELINE}"):  # noqa: S608  # likewise
            conversation_id = partition.rpartition("/")[0]
            event = Event.FromString(value)
            if event.seq <= heads.get(conversation_id, 0):  # beyond: written, and its state not yet: nobody saw it
                found[conversation_id].append(entry_of(event))
    return {conversation_id: sorted(entries, key=lambda entry: entry.seq) for conversation_id, entries in found.items()}
