"""The newest events of active conversations, for readers: most pages and all catching up end here.

Filled once events are stored. It may supply an event, never its absence: heads and ends of lists come from the tables.
"""

from collections import OrderedDict

_EVENTS_PER_CONVERSATION = 64  # a page of history, and what a device misses in a short absence


class RecentEvents:
    """Encoded events by conversation and seq, the least recently written conversations forgotten first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._conversations: OrderedDict[str, dict[int, bytes]] = OrderedDict()

    def add(self, conversation_id: str, seq: int, event: bytes) -> None:
        events = self._conversations.get(conversation_id)
        if events is None:
            events = self._conversations[conversation_id] = {}
        else:
            self._conversations.move_to_end(conversation_id)
        previous = events.get(seq)
        events[seq] = event
        self._bytes += len(event) - (len(previous) if previous is not None else 0)
        if len(events) > _EVENTS_PER_CONVERSATION:
            self._bytes -= len(events.pop(next(iter(events))))
        while self._bytes > self._max_bytes:
            _, dropped = self._conversations.popitem(last=False)
            self._bytes -= sum(map(len, dropped.values()))

    def get(self, conversation_id: str, seq: int) -> bytes | None:
        events = self._conversations.get(conversation_id)
        return events.get(seq) if events is not None else None
