"""The Store port: what a device keeps over a restart, changed in one transaction a step.

Implementations: `store_memory` (nothing survives), `store_sqlite` (a file). tests/unit/test_client_store.py runs against each.
Used synchronously, on the loop: a change is small, and what follows must not begin before it is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from parley.api.v1 import events_pb2
from parley_client.conversation_state import ConversationState


class StoredCommand(NamedTuple):
    """A command without an outcome, exactly as it is sent."""

    request_id: bytes
    encoded: bytes
    created_ms: int
    overtaken: bool = False  # a later command of its conversation is stored


class Watermarks(NamedTuple):
    """How far one other member of a group has got."""

    delivered_seq: int
    read_seq: int


@dataclass(slots=True)
class Change:
    """What one step changed; kept wholly or not at all."""

    appended: list[events_pb2.Event] = field(default_factory=list)  # next in their timelines; handed to the app in this order
    prepended: list[events_pb2.Event] = field(default_factory=list)  # older history; never handed to the app as events
    conversations: dict[str, ConversationState] = field(default_factory=dict)
    watermarks: dict[tuple[str, str], Watermarks] = field(default_factory=dict)  # by (conversation, user)
    commands_added: list[StoredCommand] = field(default_factory=list)
    commands_overtaken: list[bytes] = field(default_factory=list)  # may be among the removed, too
    commands_removed: list[bytes] = field(default_factory=list)
    trimmed: list[tuple[str, int]] = field(default_factory=list)  # (conversation, first seq kept)
    user_id: str = ""
    device_id: str = ""
    synced: bool = False  # the first Sync of this device came to its end
    consumed: int = 0  # the ordinal up to which the app is done with events

    def __bool__(self) -> bool:
        return bool(
            self.appended
            or self.conversations
            or self.watermarks
            or self.commands_added
            or self.commands_overtaken
            or self.commands_removed
            or self.prepended
            or self.trimmed
            or self.user_id
            or self.synced
            or self.consumed
        )


@dataclass(slots=True)
class Kept:
    """What a store holds when it is opened."""

    user_id: str = ""  # empty: a new store
    device_id: str = ""
    synced: bool = False
    consumed: int = 0
    conversations: list[ConversationState] = field(default_factory=list)
    watermarks: dict[tuple[str, str], Watermarks] = field(default_factory=dict)
    commands: list[StoredCommand] = field(default_factory=list)  # in the order of their adding


class Store(Protocol):
    """One device's local state. Appended events get ascending ordinals, never used twice, in the order of appending.

    Everything may raise StoreError.
    """

    def load(self) -> Kept:
        """Read everything but the events. Raises StoreInUseError where another process has it open."""

    def commit(self, change: Change) -> None:
        """Keep a change in one transaction. On an error nothing of it is kept."""

    def unconsumed(self, after_ordinal: int, limit: int) -> Sequence[tuple[int, events_pb2.Event]]:
        """Return appended events with their ordinals, by ordinal."""

    def events(self, conversation_id: str, first_seq: int, before_seq: int, limit: int) -> Sequence[events_pb2.Event]:
        """Return the last `limit` events with first_seq <= seq < before_seq, by seq."""

    def count_of_others(self, conversation_id: str, user_id: str, after_seq: int) -> int:
        """Count the messages above a seq that others than this user sent."""

    def close(self) -> None:
        """Let go of the file; idempotent."""
