"""The Store in memory: for tests, bots and benchmarks. A second client may open it again, as after a crash of the first."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from itertools import islice

from parley.api.v1 import events_pb2
from parley_client.conversation_state import ConversationState
from parley_client.store import Change, Kept, StoredCommand, Watermarks


class _Timeline:
    """One conversation's events, by seq."""

    __slots__ = ("events", "seqs")

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.events: list[events_pb2.Event] = []

    def add(self, event: events_pb2.Event) -> None:
        if not self.seqs or event.seq > self.seqs[-1]:
            self.seqs.append(event.seq)
            self.events.append(event)
            return
        index = bisect_left(self.seqs, event.seq)
        if self.seqs[index] != event.seq:
            self.seqs.insert(index, event.seq)
            self.events.insert(index, event)


class MemoryStore:
    """Keeps objects as they are given; the caller changes no event afterwards."""

    def __init__(self) -> None:
        self._user_id = self._device_id = ""
        self._synced = False
        self._conversations: dict[str, ConversationState] = {}
        self._timelines: dict[str, _Timeline] = {}
        self._watermarks: dict[tuple[str, str], Watermarks] = {}
        self._commands: dict[bytes, StoredCommand] = {}
        self._unconsumed: deque[tuple[int, events_pb2.Event]] = deque()
        self._consumed = self._ordinal = 0

    def load(self) -> Kept:
        return Kept(
            user_id=self._user_id,
            device_id=self._device_id,
            synced=self._synced,
            consumed=self._consumed,
            conversations=deepcopy(list(self._conversations.values())),
            watermarks=dict(self._watermarks),
            commands=list(self._commands.values()),
        )

    def commit(self, change: Change) -> None:
        for event in change.appended:
            self._timeline(event.conversation_id).add(event)
            self._ordinal += 1
            self._unconsumed.append((self._ordinal, event))
        for event in change.prepended:
            self._timeline(event.conversation_id).add(event)
        self._conversations.update(change.conversations)
        self._watermarks.update(change.watermarks)
        for command in change.commands_added:
            self._commands[command.request_id] = command
        for request_id in change.commands_overtaken:
            self._commands[request_id] = self._commands[request_id]._replace(overtaken=True)
        for request_id in change.commands_removed:
            self._commands.pop(request_id, None)
        for conversation_id, first_seq in change.trimmed:
            timeline = self._timeline(conversation_id)
            cut = bisect_left(timeline.seqs, first_seq)
            del timeline.seqs[:cut], timeline.events[:cut]
        if change.user_id:
            self._user_id, self._device_id = change.user_id, change.device_id
        self._synced = self._synced or change.synced
        self._consumed = max(self._consumed, change.consumed)
        while self._unconsumed and self._unconsumed[0][0] <= self._consumed:
            self._unconsumed.popleft()

    def unconsumed(self, after_ordinal: int, limit: int) -> Sequence[tuple[int, events_pb2.Event]]:
        if not self._unconsumed:
            return ()
        start = max(0, after_ordinal + 1 - self._unconsumed[0][0])  # ordinals are consecutive
        return list(islice(self._unconsumed, start, start + limit))

    def events(self, conversation_id: str, first_seq: int, before_seq: int, limit: int) -> Sequence[events_pb2.Event]:
        timeline = self._timelines.get(conversation_id)
        if timeline is None:
            return ()
        start, end = bisect_left(timeline.seqs, first_seq), bisect_left(timeline.seqs, before_seq)
        return timeline.events[max(start, end - limit) : end]

    def count_of_others(self, conversation_id: str, user_id: str, after_seq: int) -> int:
        timeline = self._timelines.get(conversation_id)
        if timeline is None:
            return 0
        later = timeline.events[bisect_left(timeline.seqs, after_seq + 1) :]
        return sum(1 for event in later if event.actor_user_id != user_id and event.HasField("message"))

    def close(self) -> None:
        """Keep everything: the next client finds it."""

    def _timeline(self, conversation_id: str) -> _Timeline:
        timeline = self._timelines.get(conversation_id)
        if timeline is None:
            timeline = self._timelines[conversation_id] = _Timeline()
        return timeline
