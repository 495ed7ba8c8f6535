"""The log's topics. A topic's name in an engine carries the log epoch (`parley.commands.e1`); the adapters add it."""

from typing import Final

COMMANDS: Final = "parley.commands"  # CommandRecord, keyed by conversation; the only topic that must survive power loss
EVENTS: Final = "parley.events"  # EventBatch, same partitions as the commands that caused it
OFFLINE: Final = "parley.offline"  # OfflineBatch
DEAD_LETTERS: Final = "parley.deadletters"  # DeadLetter
