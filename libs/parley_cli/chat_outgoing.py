"""What was typed in a chat and has not come back yet at its place in the timeline."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from chassis.first_of import first_of
from parley_client import Client, ClientError, OutboxFullError, Ticket

_OUTCOME_SECONDS = 10.0  # for the next outcome: beyond that nothing moves


class Outgoing:
    """The messages of this run without an outcome, by request id, oldest first; `lost` is set while there is no connection."""

    def __init__(self, client: Client, lost: asyncio.Event) -> None:
        self._client = client
        self._lost = lost
        self._texts: dict[bytes, str] = {}
        self._moved = asyncio.Event()

    def texts(self) -> list[str]:
        """Return what waits."""
        return list(self._texts.values())

    async def send(self, text: str, send: Callable[[], Awaitable[Ticket]]) -> None:
        """Send a message. Where too many wait (a long file is piped in) it waits as well, as long as outcomes come.

        Raises OutboxFullError, InvalidCommandError.
        """
        try:
            ticket = await send()
        except OutboxFullError:
            with suppress(TimeoutError):
                await first_of(_outcome(self._client.pending()[0]), self._lost.wait())
            ticket = await send()
        self._texts[ticket.request_id] = text

    def settle(self, request_id: bytes) -> str | None:
        """Note that a message was shown or refused; return its text, if it was one of this run's."""
        self._moved.set()
        return self._texts.pop(request_id, None)

    async def wait(self) -> int:
        """Wait until nothing waits, while there is a connection and outcomes come; return how many are left."""
        with suppress(TimeoutError):
            await first_of(self._all(), self._lost.wait())
        return len(self._client.pending())

    async def _all(self) -> None:
        for ticket in self._client.pending():
            await _outcome(ticket)
        while self._texts:
            self._moved.clear()
            async with asyncio.timeout(_OUTCOME_SECONDS):
                await self._moved.wait()


async def _outcome(ticket: Ticket) -> None:
    async with asyncio.timeout(_OUTCOME_SECONDS):
        with suppress(ClientError):  # a refusal is told by its notice; an end by what ends
            await ticket.accepted()
