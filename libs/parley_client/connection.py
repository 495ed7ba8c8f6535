"""One stream to a gateway, from Hello to its end: frames in, frames out, and a watch over silence.

What grpc.aio needs to leak nothing: one reader and one writer; no timeout around `read` (cancelling its awaiter leaks a batch), a
timer that cancels the call instead; `close` at the end, always.

What it needs to lose nothing: frames are iterated over. A write that fails because the server has ended the stream makes the call
"done", and `call.read()` on a call that is done leaves unread what came before: the goodbye. The iterator reads on to the end.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

import grpc

from chassis.clock import Clock
from parley.api.v1.messaging_service_pb2 import ConnectResponse, Welcome
from parley_client.device_frames import hello_frame
from parley_client.errors import CallError, call_error, cancelled_from_outside, read_status
from parley_client.reconnect import Verdict, after_error, after_go_away, after_loss
from parley_client.token import Metadata

CONNECT: Final = "/parley.api.v1.MessagingService/Connect"
SILENT_INTERVALS: Final = 2  # the protocol's: one lost heartbeat is an accident, two are an end
CHECK_SECONDS: Final = 0.1  # between two looks at least: timers may fire a rounding early
DEFAULT_HEARTBEAT_SECONDS: Final = 30.0  # where Welcome names none


class StreamEndedError(Exception):
    """The stream is over; the verdict says how to go on."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason, verdict.detail)
        self.verdict = verdict


class Connection:
    """A stream. Reading and writing raise StreamEndedError once it is over, whoever ended it."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, clock: Clock) -> None:
        connect: grpc.aio.StreamStreamMultiCallable[bytes, ConnectResponse] = channel.stream_stream(
            CONNECT, response_deserializer=ConnectResponse.FromString
        )
        self._call = connect(metadata=metadata)
        frames = aiter(self._call)
        assert isinstance(frames, AsyncGenerator), "of gRPC's calls and ours"
        self._frames: AsyncGenerator[ConnectResponse] = frames
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._writing_since: float | None = None
        self._verdict: Verdict | None = None
        self._opening: asyncio.Timeout | None = None
        self.heartbeat_seconds = DEFAULT_HEARTBEAT_SECONDS
        self.last_heard = self.last_sent = clock.monotonic()

    async def open(self, device_id: str, client_name: str, timeout_seconds: float) -> Welcome:
        """Say Hello and wait for Welcome; from then on silence ends the stream."""
        self._watch(self._clock.monotonic() + timeout_seconds, self._end_unwelcomed)
        try:
            # A call that is cancelled in the moment of its beginning never wakes who writes to it: `cancel` ends this, too.
            async with asyncio.timeout(None) as self._opening:
                with suppress(StreamEndedError):  # turned away before Hello was written: what came says why
                    await self.write(hello_frame(device_id, client_name))
        except TimeoutError:
            raise StreamEndedError(self._verdict or after_loss("the call was cancelled")) from None
        finally:
            self._opening = None
        frame = await self.read()
        if frame.HasField("frame_error"):
            raise StreamEndedError(after_error(CallError(*read_status(frame.frame_error.status))))
        if not frame.HasField("welcome"):
            raise StreamEndedError(after_loss(f"the first frame was {frame.WhichOneof('frame')}, not Welcome"))
        self.heartbeat_seconds = frame.welcome.heartbeat_interval.ToNanoseconds() / 1e9 or DEFAULT_HEARTBEAT_SECONDS
        self._end_if_silent()
        return frame.welcome

    async def read(self) -> ConnectResponse:
        """Wait for a frame. GoAway ends the stream here."""
        try:
            frame = await anext(self._frames)
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            raise StreamEndedError(self._verdict or after_loss("the call was cancelled")) from None
        except grpc.aio.AioRpcError as error:
            raise StreamEndedError(self._verdict or after_error(call_error(error))) from error
        except StopAsyncIteration:
            raise StreamEndedError(self._verdict or after_loss("the server ended the stream")) from None
        self.last_heard = self._clock.monotonic()
        if frame.HasField("go_away"):
            raise StreamEndedError(after_go_away(frame.go_away))
        return frame

    async def write(self, frame: bytes) -> None:
        """Send an encoded ConnectRequest. Where the stream is over already, `read` still has what came, and knows why."""
        now = self._clock.monotonic()
        self._writing_since = self.last_sent = now
        try:
            await self._call.write(frame)
        except asyncio.CancelledError:
            if cancelled_from_outside():
                raise
            raise StreamEndedError(self._verdict or after_loss("the call was cancelled")) from None
        except grpc.aio.AioRpcError as error:
            raise StreamEndedError(self._verdict or after_error(call_error(error))) from error
        except asyncio.InvalidStateError:  # how grpc.aio says that the call is done; the reader learns why
            raise StreamEndedError(self._verdict or after_loss("the stream is over")) from None
        finally:
            self._writing_since = None

    def end_within(self, seconds: float) -> None:
        """Cancel the call after a while if it has not ended by then."""
        self._watch(self._clock.monotonic() + seconds, self.cancel)

    async def finish(self) -> None:
        """Say that nothing more will come, so that all that was written arrives; the reader ends when the server has it."""
        try:
            await self._call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            self.cancel()  # over already

    def end(self, verdict: Verdict) -> None:
        """End the stream for a reason of our own."""
        if self._verdict is None:
            self._verdict = verdict
        self.cancel()

    async def close(self) -> None:
        """Let go of the call and of what was to come; owed at the end of every stream, once nobody reads or writes any more."""
        self.cancel()
        await self._frames.aclose()  # else it ends when the collector finds it, in a task of the loop's own

    def cancel(self) -> None:
        """Let go of the call, at once; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._opening is not None:
            self._opening.reschedule(0.0)
            self._opening = None
        self._call.cancel()

    def _watch(self, when: float, check: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, check)

    def _end_unwelcomed(self) -> None:
        self.end(after_loss("no Welcome in time"))

    def _end_if_silent(self) -> None:
        now, limit = self._clock.monotonic(), SILENT_INTERVALS * self.heartbeat_seconds
        stuck_since = self._writing_since if self._writing_since is not None else now
        if now >= self.last_heard + limit:
            self.end(after_loss(f"the server was silent for {limit:g} s"))
        elif now >= stuck_since + limit:
            self.end(after_loss(f"the server took nothing for {limit:g} s"))
        else:
            self._watch(max(min(self.last_heard, stuck_since) + limit, now + CHECK_SECONDS), self._end_if_silent)
