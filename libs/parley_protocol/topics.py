"""The log's topics. A topic's name in an engine carries the log epoch (`parley.commands.e1`); the adapters add it."""

from typing import Final

COMMANDS: Final = "parley.commands"  # CommandRecord, keyed by conversation; the only topic that must survive power loss
EVENTS: Final = "parley.events"  # EventBatch, same partitions as the commands that caused it
OFFLINE: Final = "parley.offline"  # OfflineBatch
DEAD_LETTERS: Final = "parley.deadletters"  # DeadLetter


def topics(partitions: int) -> dict[str, int]:
    """Return all topics with their partition counts: equal ones, for what a command causes stays in its partition."""
    return dict.fromkeys((COMMANDS, EVENTS, OFFLINE, DEAD_LETTERS), partitions)
