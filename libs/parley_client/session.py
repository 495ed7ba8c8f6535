"""One connection's work: a read loop, a writer that sends all that is due in one frame, and catching up. No task per message."""

import asyncio
import random
from typing import Final

import structlog

from chassis.clock import Clock
from parley.api.v1.messaging_service_pb2 import ConnectResponse, Limits, Welcome
from parley_client.calls import Calls
from parley_client.catch_up import CatchUp
from parley_client.connection import Connection, StreamEndedError
from parley_client.device import Device
from parley_client.device_frames import batch_frame, digest_frame, skips_frame
from parley_client.errors import CallError, ClientError, read_status
from parley_client.notices import FrameRefused
from parley_client.outbox_state import Run
from parley_client.reconnect import Verdict, after_error, after_loss
from parley_protocol.digests import whole_digest

HEARTBEAT_SHARE: Final = 0.7  # of the interval: early enough that a slow line does not make us late
DEFAULT_COMMANDS_PER_FRAME: Final = 64  # where Welcome says nothing
DEFAULT_FRAME_BYTES: Final = 512 * 1024
FRAME_SLACK_BYTES: Final = 1024  # a frame's own fields, and rounding of our estimate
TIMER_SLACK_SECONDS: Final = 0.001  # asyncio may fire a rounding early; what is not quite due then is looked at later
FINISH_SECONDS: Final = 2.0  # for the server to read what was written last

_log = structlog.get_logger()


class Session:
    """A connection that is welcomed, until its end."""

    def __init__(
        self, device: Device, connection: Connection, calls: Calls, welcome: Welcome, clock: Clock, rng: random.Random
    ) -> None:
        self._device = device
        self._connection = connection
        self._calls = calls
        self._limits: Limits = welcome.limits
        self._clock = clock
        self._rng = rng
        self._heartbeat_after = connection.heartbeat_seconds * HEARTBEAT_SHARE
        self._commands_per_frame = welcome.limits.commands_per_frame or DEFAULT_COMMANDS_PER_FRAME
        self._frame_bytes = (welcome.limits.frame_bytes or DEFAULT_FRAME_BYTES) - FRAME_SLACK_BYTES
        self._last_heartbeat = clock.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._finishing = False
        self._digest_asked = False
        self._catch_up: CatchUp

    async def run(self) -> Verdict:
        """Work until the stream ends; return how to go on."""
        async with asyncio.TaskGroup() as tasks:
            self._catch_up = catch_up = CatchUp(
                self._device, self._calls, tasks=tasks, fail=self._fail, limits=self._limits, clock=self._clock, rng=self._rng
            )
            writing = tasks.create_task(self._write(), name="parley.write")
            catch_up.again()
            try:
                return await self._read()
            finally:
                catch_up.stop()
                writing.cancel()
                if self._timer is not None:
                    self._timer.cancel()

    def finish(self) -> None:
        """Send what waits, acks included, and end the stream."""
        self._finishing = True
        self._connection.end_within(FINISH_SECONDS)
        self._device.writer_wake.set()

    async def _read(self) -> Verdict:
        read, state = self._connection.read, self._device.state
        while True:
            try:
                frame = await read()
            except StreamEndedError as end:
                return end.verdict
            if frame.HasField("batch"):
                self._device.keep(state.on_batch(frame.batch, self._connection.last_heard))
                if frame.batch.HasField("digest_check"):
                    self._on_digest_check(frame.batch.digest_check.differs)
            elif frame.HasField("frame_error"):
                self._on_frame_error(frame)

    def _on_digest_check(self, differs: bool) -> None:
        """Say what is held; what is known to be incomplete says nothing. Or hear that something is missing unnoticed."""
        if differs:
            self._catch_up.again()
        elif self._device.caught_up.is_set() and not self._device.state.timelines.behind:
            self._digest_asked = True
            self._device.writer_wake.set()

    def _on_frame_error(self, frame: ConnectResponse) -> None:
        error = CallError(*read_status(frame.frame_error.status))
        _log.warning("parley_client.frame_refused", reason=error.reason, detail=error.detail)
        self._device.board.put(FrameRefused(error))

    async def _write(self) -> None:
        """Send what is due, all of it in as few frames as the limits allow; then wait for more, or for the next moment."""
        device, connection = self._device, self._connection
        try:
            while True:
                device.writer_wake.clear()
                await self._write_due()
                if self._finishing:
                    await connection.finish()
                    return
                self._arm()
                await device.writer_wake.wait()
        except StreamEndedError:
            return  # the reader meets the same end, and knows why

    async def _write_due(self) -> None:
        state, connection = self._device.state, self._connection
        now = self._clock.monotonic()
        state.outbox.on_time(now)
        skips = state.outbox.take_skips()
        if skips:
            await connection.write(skips_frame(skips))
        while True:
            run = state.outbox.take(now, self._commands_per_frame, self._frame_bytes) or _NOTHING
            acks = state.acks.take(now, everything=self._finishing)
            if not run.commands and not acks:
                break
            await connection.write(batch_frame(run.first_number, [command.encoded for command in run.commands], acks))
            now = self._clock.monotonic()
        if self._digest_asked:
            self._digest_asked = False
            await connection.write(digest_frame(whole_digest(state.digests())))
        if now >= self._heartbeat_due():
            self._last_heartbeat = now
            await connection.write(batch_frame(0, (), ()))

    def _heartbeat_due(self) -> float:
        """Return when to say something: we were silent, or the server was and is asked for a sign of life."""
        connection = self._connection
        return min(connection.last_sent, max(connection.last_heard, self._last_heartbeat)) + self._heartbeat_after

    def _arm(self) -> None:
        """Wake the writer when something is due next."""
        state, when = self._device.state, self._heartbeat_due()
        for due in (state.outbox.next_due(), state.acks.next_due()):
            if due is not None and due < when:
                when = due
        if self._timer is not None:
            if self._timer.when() <= when:
                return  # wakes early enough; re-arming at each frame would fill the loop's heap
            self._timer.cancel()
        when = max(when, self._clock.monotonic() + TIMER_SLACK_SECONDS)
        self._timer = asyncio.get_running_loop().call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._device.writer_wake.set()

    def _fail(self, error: ClientError) -> None:
        """End the stream over a call that failed for good, or a server that broke the protocol."""
        self._connection.end(after_error(error) if isinstance(error, CallError) else after_loss(str(error)))


_NOTHING: Final = Run(0, [])
