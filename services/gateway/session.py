"""One device's stream, seen from within: what waits to be written, which conversations are held, how it ends. Does no I/O."""

import asyncio
import math
from typing import Final

from chassis.rate import TokenBucket
from parley.api.v1.messaging_service_pb2 import GoAwayReason
from parley_protocol.frames import server_batch_frame
from parley_protocol.ids import direct_conversation_id
from services.gateway.goodbyes import go_away
from services.gateway.tokens import Claims

_FRAME_BYTES: Final = 256 * 1024  # what one write takes from the outbox at most: larger ones gain nothing and hold memory twice
_MAX_CONTROL_FRAMES: Final = 32  # answers to bad frames, which are bounded too
_MAX_PEERS: Final = 256  # remembered ids of 1-1 conversations; ~200 B each, and 2 us to compute again
MAX_HOLDS: Final = 256  # conversations that wait for a resend; a device that has more is told to come again later


class Session:
    """A stream's state. Most devices are idle, so what is not needed yet is not there yet.

    `closed` becomes true once, when nothing will be written any more; the stream's handler waits for `ended`, which says the same.
    """

    __slots__ = (
        "_control",
        "_fields",
        "_fields_bytes",
        "_goodbye",
        "_max_bytes",
        "_max_fields",
        "_peers",
        "_waker",
        "asked",
        "bad_frames",
        "chatter",
        "check_at",
        "closed",
        "device_id",
        "differed",
        "ended",
        "expires_ms",
        "failure",
        "goodbye_reason",
        "heard_at",
        "holds",
        "origin",
        "pinned_device_id",
        "session_id",
        "stuck",
        "user_id",
        "writing_since",
    )

    def __init__(self, claims: Claims, now: float, max_fields: int, max_bytes: int) -> None:
        self.user_id = claims.user_id
        self.pinned_device_id = claims.device_id
        self.expires_ms = claims.expires_ms
        self.heard_at = now  # monotonic; infinite while the gateway itself does not read
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.check_at = math.inf  # monotonic; when to ask what the device holds
        self.asked = False  # it was, and has not answered
        self.differed = False  # what it held last time was not what it should
        self.stuck = False  # closed because a write did not end
        self.device_id = ""  # empty: no Hello yet
        self.session_id = ""
        self.origin = b""
        self.closed = False
        self.failure: BaseException | None = None
        self.goodbye_reason: GoAwayReason.ValueType = GoAwayReason.GO_AWAY_REASON_UNSPECIFIED  # unspecified: none said
        self.writing_since = math.inf  # monotonic; infinite: no write in flight
        self.bad_frames = 0
        self.chatter: TokenBucket | None = None
        self.holds: dict[str, int] | None = None
        self._max_fields = max_fields
        self._max_bytes = max_bytes
        self._fields: list[bytes] = []
        self._fields_bytes = 0
        self._control: list[bytes] | None = None
        self._goodbye: bytes | None = None
        self._peers: dict[str, str] | None = None
        self._waker: asyncio.Future[None] | None = None

    @property
    def ending(self) -> bool:
        """Tell whether nothing that the device says counts any more."""
        return self._goodbye is not None or self.closed

    @property
    def outbox_bytes(self) -> int:
        """Return how much waits."""
        return self._fields_bytes

    def put(self, fields: bytes, *, wake: bool = True) -> bool:
        """Queue encoded fields of a ServerBatch; return whether the device may get them. Over the bounds the session ends.

        Without `wake` they wait for the next frame, or for somebody who wakes the writer.
        """
        if self._goodbye is not None or self.closed:
            return False
        self._fields.append(fields)
        self._fields_bytes += len(fields)
        if self._fields_bytes > self._max_bytes or len(self._fields) > self._max_fields:
            self.say_goodbye(GoAwayReason.GO_AWAY_REASON_SLOW, "the device reads too slowly: reconnect and Sync")
            return False
        if wake:
            self.wake()
        return True

    def put_control(self, frame: bytes) -> None:
        """Queue a whole frame ahead of the fields: Welcome, FrameError."""
        if self._control is None:
            self._control = []
        if len(self._control) >= _MAX_CONTROL_FRAMES:
            self.say_goodbye(GoAwayReason.GO_AWAY_REASON_SLOW, "the device does not read the answers to its frames")
            return
        self._control.append(frame)
        self.wake()

    def say_goodbye(
        self, reason: GoAwayReason.ValueType, detail: str, address: str = "", delay_seconds: float | None = None
    ) -> bool:
        """End the session with a GoAway after what is queued; return whether this is the first goodbye. A slow device's queue is
        dropped: it would only get the same again at Sync, and later.
        """
        if self._goodbye is not None or self.closed:
            return False
        self.goodbye_reason = reason
        self._goodbye = go_away(reason, detail, address, delay_seconds)
        if reason == GoAwayReason.GO_AWAY_REASON_SLOW:
            self._fields.clear()
            self._fields_bytes = 0
            self._control = None
        self.wake()
        return True

    def finish(self) -> None:
        """End the session after what is queued, without a word: the device said that it is done."""
        if self._goodbye is None:
            self._goodbye = b""
        self.wake()

    def close(self, failure: BaseException | None = None) -> None:
        """End the session at once. A failure is our bug, or a status that the call shall end with."""
        if self.closed:
            return
        self.closed = True
        self.failure = failure
        self._fields.clear()
        self._fields_bytes = 0
        self._control = None
        if not self.ended.done():
            self.ended.set_result(None)
        self.wake()

    def take_frame(self) -> bytes | None:
        """Return the next frame to write: all that is queued, in one. None: nothing to write now.

        Closes the session once the goodbye has been taken and written, that is at the next call.
        """
        if self._control:
            return self._control.pop(0)
        fields = self._fields
        if fields:
            if self._fields_bytes <= _FRAME_BYTES:
                batch = b"".join(fields)
                fields.clear()
                self._fields_bytes = 0
            else:
                size = count = 0
                while count < len(fields) and (not count or size + len(fields[count]) <= _FRAME_BYTES):
                    size += len(fields[count])
                    count += 1
                batch = b"".join(fields[:count])
                del fields[:count]
                self._fields_bytes -= size
            return server_batch_frame(batch)
        if self._goodbye is not None and not self.closed:
            goodbye, self._goodbye = self._goodbye, b""
            if goodbye:
                return goodbye
            self.close()
        return None

    async def wait(self) -> None:
        """Wait until there may be a frame to take, or the session is closed."""
        self._waker = asyncio.get_running_loop().create_future()
        await self._waker

    def wake(self) -> None:
        """Wake the writer."""
        waker = self._waker
        if waker is not None and not waker.done():
            waker.set_result(None)

    def conversation_with(self, user_id: str) -> str:
        """Return the id of the 1-1 conversation with a user."""
        peers = self._peers
        if peers is None:
            peers = self._peers = {}
        conversation_id = peers.get(user_id)
        if conversation_id is None:
            if len(peers) >= _MAX_PEERS:
                peers.clear()
            conversation_id = peers[user_id] = direct_conversation_id(self.user_id, user_id)
        return conversation_id

    def hold(self, conversation_id: str, number: int) -> bool:
        """Hold a conversation until the command of that number comes again; return False if too many are held."""
        if self.holds is None:
            self.holds = {}
        self.holds[conversation_id] = number
        return len(self.holds) <= MAX_HOLDS

    def skip(self, conversation_id: str, number: int) -> None:
        """Give up the held command of that number."""
        if self.holds is not None and self.holds.get(conversation_id) == number:
            del self.holds[conversation_id]
