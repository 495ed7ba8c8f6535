"""What a client tells besides events: small typed notices, for screens. Lossy by design: what they speak of can be read."""

import asyncio
from collections import deque
from enum import Enum
from typing import NamedTuple, TypeAlias

from parley_client.errors import RejectedError, StatusError


class ConnectionState(Enum):
    """Where the client stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"  # live events come; what was missed is being fetched
    WAITING = "waiting"  # for the next attempt
    STOPPED = "stopped"


class ConnectionChanged(NamedTuple):
    """The connection's state moved; `detail` is for a person."""

    state: ConnectionState
    detail: str = ""
    retry_in_seconds: float = 0.0


class CaughtUp(NamedTuple):
    """All that happened up to this connection is held."""


class ConversationChanged(NamedTuple):
    """Something of a conversation moved: its head, unread count, membership, title. Read `client.conversation(id)`."""

    conversation_id: str


class ReceiptMoved(NamedTuple):
    """Somebody's watermarks rose: ticks."""

    conversation_id: str
    user_id: str
    delivered_seq: int
    read_seq: int


class CommandHeld(NamedTuple):
    """The server can't take a conversation's commands now; they go out again after the delay."""

    conversation_id: str
    request_id: bytes
    reason: str
    delay_seconds: float


class CommandRejected(NamedTuple):
    """A command was refused for good, also one of an earlier run whose ticket nobody holds."""

    request_id: bytes
    error: RejectedError


class FrameRefused(NamedTuple):
    """The server did nothing of a frame; its commands are sent again after a while. A mismatch of versions, or a bug."""

    error: StatusError


class Missed(NamedTuple):
    """The reader was too slow: that many of the oldest notices were dropped. Read the state afresh."""

    dropped_count: int


Notice: TypeAlias = (
    ConnectionChanged | CaughtUp | ConversationChanged | ReceiptMoved | CommandHeld | CommandRejected | FrameRefused | Missed
)


class NoticeStream:
    """One reader's notices, oldest first; ends when the client is closed. Keeps the newest `capacity`."""

    def __init__(self, capacity: int) -> None:
        self._notices: deque[Notice] = deque(maxlen=capacity)
        self._missed = 0
        self._ended = False
        self._wake = asyncio.Event()

    def __aiter__(self) -> "NoticeStream":
        return self

    async def __anext__(self) -> Notice:
        while not self._notices and not self._missed:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        if self._missed:
            missed, self._missed = self._missed, 0
            return Missed(missed)
        return self._notices.popleft()

    def put(self, notice: Notice) -> None:
        """Add a notice; called by the client."""
        if len(self._notices) == self._notices.maxlen:
            self._missed += 1
        self._notices.append(notice)
        self._wake.set()

    def end(self) -> None:
        """Let the reader end after what is there; called by the client."""
        self._ended = True
        self._wake.set()


class Board:
    """Hands notices to all readers; costs next to nothing without any."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._streams: list[NoticeStream] = []

    @property
    def has_readers(self) -> bool:
        """Whether anybody reads."""
        return bool(self._streams)

    def open(self) -> NoticeStream:
        """Add a reader, from now on."""
        stream = NoticeStream(self._capacity)
        self._streams.append(stream)
        return stream

    def close(self, stream: NoticeStream) -> None:
        """Remove a reader."""
        self._streams.remove(stream)

    def put(self, notice: Notice) -> None:
        """Tell all readers."""
        for stream in self._streams:
            stream.put(notice)

    def end(self) -> None:
        """Let all readers end."""
        for stream in self._streams:
            stream.end()
