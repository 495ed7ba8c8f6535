"""The link to the server: one stream after another, with the right pause between them, until the client ends or is told to.

Where to: at first, and whenever an attempt has failed, a home address is asked (`Locate`); from then on a goodbye may name another
address. Homes are taken in turn, so that one which is dead keeps nobody out.
"""

import asyncio
import random
from typing import Final

import grpc

from chassis.clock import Clock
from parley_client.backoff import Backoff
from parley_client.calls import Calls
from parley_client.channel import ChannelFactory
from parley_client.connection import Connection, StreamEndedError
from parley_client.device import Device
from parley_client.errors import CallError, ClientError, ClosedError, FailedError, SignedOffError, StoreError
from parley_client.notices import ConnectionState
from parley_client.reconnect import DRAINING, LOST, Verdict, after_error, after_loss
from parley_client.session import Session
from parley_client.token import TokenSource, TokenUnavailableError

HURRIED_SECONDS: Final = 1.0  # between attempts, for who is told to hurry on and on
STEADY_SECONDS: Final = 5.0  # a stream that lived so long was a success: the next failure begins a new series


class Link:
    """Connects and reconnects. `calls` are the unary calls on the channel in use."""

    def __init__(
        self,
        device: Device,
        address: str,
        device_id: str,
        *,
        open_channel: ChannelFactory,
        can_move: bool,
        tokens: TokenSource,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._device = device
        self._homes = [home.strip() for home in address.split(",")]  # in turn
        self._address = self._homes[0]
        self._lost = can_move  # where the device belongs has to be asked
        self._can_move = can_move
        self._device_id = device_id
        self._open_channel = open_channel
        self._tokens = tokens
        self._clock = clock
        self._rng = rng
        self._backoff = Backoff(rng)
        self._last_at_once = ""  # the reason of the last end, if it asked for no pause
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._closing = False
        self._closed = asyncio.Event()
        self._pause_ends: asyncio.TimerHandle | None = None
        self._not_before = 0.0  # the earliest end of the pause, on the loop's clock
        self.calls: Calls | None = None

    async def run(self) -> None:
        """Keep the device connected. Returns when `close` is called; a goodbye without return, or our own bug, ends the device."""
        device = self._device
        try:
            while not self._closing:
                async with self._open_channel(self._address) as channel:
                    self.calls = Calls(channel, self._tokens, device.options.rpc_timeout_seconds)
                    if not self._lost or await self._locate(self.calls):
                        await self._stay(channel, self._address)
        except BaseException as raised:
            if isinstance(raised, ClientError) and not isinstance(raised, StoreError):
                device.end(raised)
            else:
                error = _alone(raised)
                device.end(FailedError(f"the client stopped over {error!r}"))
                raise error from None
        finally:
            self.calls = None
            device.end(ClosedError("the client was closed"))

    def close(self) -> None:
        """Let `run` return soon: what is queued and acknowledged goes out first, if there is a stream."""
        self._closing = True
        self._closed.set()
        if self._session is not None:
            self._session.finish()
        elif self._connection is not None:
            self._connection.cancel()

    def hurry(self) -> None:
        """Cut the present pause short, if there is one."""
        if self._pause_ends is not None and self._not_before < self._pause_ends.when():
            self._pause_ends.cancel()
            self._pause_ends = asyncio.get_running_loop().call_at(self._not_before, self._closed.set)

    async def _locate(self, calls: Calls) -> bool:
        """Ask a home where this device belongs; return whether that is right here."""
        self._device.set_connection(ConnectionState.CONNECTING)
        try:
            address = await calls.locate()
        except CallError as error:
            if error.passes:
                self._go_home()
                await self._pause(None, after_error(error))
                return False
            address = ""  # an older server, or one that wants another token: the stream tells
        self._lost = False
        if not address or address == self._address:
            return True
        self._address = address
        return False

    def _go_home(self) -> None:
        """Ask the next home where this device belongs."""
        if self._address == self._homes[0]:
            self._homes.append(self._homes.pop(0))
        self._address = self._homes[0]
        self._lost = self._can_move

    async def _stay(self, channel: grpc.aio.Channel, address: str) -> None:
        """Hold one stream after another on a channel, until another address is due or the channel is of no use.

        One that could not connect goes on failing, without an attempt, while a backoff of its own lasts; one that fell silent may
        lie on a network that the device has left.
        """
        while not self._closing and address == self._address:
            up_since, verdict = await self._hold_stream(channel)
            if self._closing:
                return
            if not verdict.again or (verdict.fresh_token and not self._tokens.is_renewable):
                raise SignedOffError(verdict.reason, verdict.detail)
            if verdict.fresh_token:
                self._tokens.expire()
            if verdict.address and self._can_move:
                self._address = verdict.address
            elif up_since is None or verdict.reason == DRAINING:
                self._go_home()
            await self._pause(up_since, verdict)
            if up_since is None or self._lost or verdict.reason == LOST:
                return

    async def _hold_stream(self, channel: grpc.aio.Channel) -> tuple[float | None, Verdict]:
        """Hold one stream; return since when it was up (None: never) and how to go on."""
        device = self._device
        if device.connection is not ConnectionState.CONNECTING:
            device.set_connection(ConnectionState.CONNECTING)
        try:
            metadata = await self._tokens.metadata()
        except TokenUnavailableError as error:
            return None, after_loss(f"no token: {error}")
        connection = self._connection = Connection(channel, metadata, self._clock)
        try:
            welcome = await connection.open(self._device_id, device.options.client_name, device.options.rpc_timeout_seconds)
            device.keep(device.state.on_welcome(welcome.user_id, welcome.device_id, self._clock.wall_ms()))
            assert self.calls is not None, "set with the channel"
            self._session = Session(device, connection, self.calls, welcome, self._clock, self._rng)
            up_since = self._clock.monotonic()
            device.set_connection(ConnectionState.CONNECTED, welcome.session_id)
            if self._closing:
                self._session.finish()
            return up_since, await self._session.run()
        except StreamEndedError as end:
            return None, end.verdict
        finally:
            self._connection = self._session = None
            await connection.close()

    async def _pause(self, up_since: float | None, verdict: Verdict) -> None:
        """Wait before the next attempt."""
        was_up = up_since is not None
        if up_since is not None and self._clock.monotonic() - up_since >= STEADY_SECONDS:
            self._backoff.reset()
            self._last_at_once = ""
        if verdict.at_once and (was_up or verdict.address) and self._last_at_once != verdict.reason:
            delay = verdict.delay_seconds
        else:
            delay = self._backoff.next_delay(verdict.delay_seconds)
        self._last_at_once = verdict.reason if verdict.at_once else ""
        self._device.set_connection(ConnectionState.WAITING, f"{verdict.reason}: {verdict.detail}", delay)
        loop = asyncio.get_running_loop()
        self._not_before = loop.time() + max(verdict.delay_seconds, HURRIED_SECONDS)
        self._pause_ends = loop.call_later(delay, self._closed.set)
        try:
            await self._closed.wait()
        finally:
            self._pause_ends.cancel()
            self._pause_ends = None
        if not self._closing:
            self._closed.clear()


def _alone(error: BaseException) -> BaseException:
    """Return what a task group wrapped, if it is one error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
