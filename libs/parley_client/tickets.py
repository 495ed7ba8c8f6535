"""What an app holds of a command that it sent: a ticket, good until the outcome, over any number of reconnects."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from parley_client.errors import ClientError
from parley_client.outbox_state import Cancel


class Accepted(NamedTuple):
    """The command is stored, exactly once."""

    conversation_id: str
    seq: int
    message_count: int
    time_ms: int  # the log's time
    duplicate: bool  # it had been stored before: by an earlier sending whose answer was lost


class Ticket:
    """One command's fate. It may be dropped: the command goes on without it."""

    __slots__ = ("_cancel", "_outcome", "_waiters", "request_id")

    def __init__(self, request_id: bytes, cancel: Callable[[bytes], Cancel]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._outcome: Accepted | ClientError | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def done(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    async def accepted(self) -> Accepted:
        """Wait for the outcome, however often the connection breaks meanwhile.

        Raises RejectedError where the store refused, for good. Raises ClosedError or SignedOffError where this client ended first:
        the command stays in the outbox and goes on with the next client on the same store. CommandCancelledError follows `cancel`.
        Cancelling the wait changes nothing.
        """
        if self._outcome is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if isinstance(self._outcome, Accepted):
            return self._outcome
        assert self._outcome is not None, "a waiter is woken by settle alone"
        raise self._outcome

    def cancel(self) -> bool:
        """Give the command up if the server does not have it: never sent, or refused until later. False: it may be stored."""
        return self._cancel(self.request_id) is Cancel.REMOVED

    def settle(self, outcome: Accepted | ClientError) -> None:
        """Set the outcome and wake who waits; called by the client, once."""
        self._outcome = outcome
        for waiter in self._waiters:
            if not waiter.done():  # else its wait was cancelled
                waiter.set_result(None)
        self._waiters.clear()
