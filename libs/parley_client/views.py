"""What an app sees of a timeline: events with a few conveniences, and conversations as plain values."""

from typing import NamedTuple

from parley.api.v1 import events_pb2
from parley_client.conversation_state import ConversationState
from parley_client.device import Device
from parley_client.errors import ClientError, ClosedError

_BATCH = 256  # events read from the store at once


class TimelineEvent(NamedTuple):
    """An event at its place. `own`: this very device caused it."""

    event: events_pb2.Event
    own: bool

    @property
    def conversation_id(self) -> str:
        """Where."""
        return self.event.conversation_id

    @property
    def seq(self) -> int:
        """The place."""
        return self.event.seq

    @property
    def actor(self) -> str:
        """Who caused it."""
        return self.event.actor_user_id

    @property
    def time_ms(self) -> int:
        """The log's time."""
        return self.event.time.ToMilliseconds()

    @property
    def content(self) -> str:
        """The content's name (`message`, `members_added`, ...), or `unsupported` for one from the future."""
        return self.event.WhichOneof("content") or "unsupported"

    @property
    def body(self) -> bytes:
        """A message's body; empty for other events."""
        return self.event.message.body

    @property
    def text(self) -> str:
        """A message's body as text; bytes that are no UTF-8 are shown as replacement characters."""
        return self.event.message.body.decode(errors="replace")


class Conversation(NamedTuple):
    """One conversation as this device knows it, at the moment of asking."""

    conversation_id: str
    kind: int  # parley.api.v1.ConversationKind
    peer_user_id: str
    title: str
    member_count: int
    role: int  # parley.api.v1.Role; 0: a member no more
    first_held_seq: int
    held_seq: int
    head_seq: int  # above held_seq: events are being fetched
    delivered_seq: int
    read_seq: int
    peer_delivered_seq: int
    peer_read_seq: int
    unread_count: int
    last_time_ms: int


def view_of(state: ConversationState) -> Conversation:
    """Return the app's view of a conversation."""
    return Conversation(
        state.conversation_id,
        state.kind,
        state.peer_user_id,
        state.title,
        state.member_count,
        state.role,
        state.first_held_seq,
        state.held_seq,
        state.known_head_seq,
        state.delivered_seq,
        state.read_seq,
        state.peer_delivered_seq,
        state.peer_read_seq,
        state.unread_count,
        state.last_time_ms,
    )


class EventStream:
    """The app's reader. Reads from the store in batches: a slow app costs no memory."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._batch: list[tuple[int, events_pb2.Event]] = []  # the next one last

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> TimelineEvent:
        device = self._device
        if not device.store_is_open:
            raise StopAsyncIteration
        device.consume(device.handed)
        while not self._batch or self._batch[-1][0] <= device.handed:
            self._batch = list(device.store.unconsumed(device.handed, _BATCH)) if device.store_is_open else []
            if self._batch:
                self._batch.reverse()
                break
            if device.ended is not None:
                self._end(device.ended)
            device.flush()  # an app that waits is done with what it has
            device.events_wake.clear()
            await device.events_wake.wait()
        ordinal, event = self._batch.pop()
        device.handed = ordinal
        if device.recorder is not None:
            device.recorder.shown(event)
        return TimelineEvent(event, event.actor_device_id == device.state.device_id and event.actor_user_id == device.state.user_id)

    def _end(self, error: ClientError) -> None:
        if isinstance(error, ClosedError):
            raise StopAsyncIteration
        raise error
