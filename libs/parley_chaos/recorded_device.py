"""A device of the SDK that notes for the judge whatever it asks, is answered and shows."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from chassis.clock import Clock
from chassis.tasks import Tasks, open_tasks
from parley_checker.history import Device, Fact, History
from parley_client import Client, ClosedError, RejectedError, Store, Ticket, TimelineEvent, open_client
from parley_client.notices import ConnectionChanged, ConnectionState
from parley_client.recording import Recorder, RecordFile
from parley_protocol.ids import direct_conversation_id, group_conversation_id


class Impatient(random.Random):
    """Draws from the low tenth of every range: long waits before a reconnect are for crowds, and this is a handful of devices."""

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * 0.1 * self.random()


class RecordedDevice:
    """One run of a device's app; made by `open_recorded_device`."""

    def __init__(self, client: Client, device: Device, recorder: Recorder, tasks: Tasks) -> None:
        self.client = client
        self.device = device
        self.on_event: Callable[[TimelineEvent], None] = _ignore
        self.ends: list[str] = []  # why each connection ended, in order
        self._recorder = recorder
        self._tasks = tasks
        self._moved = asyncio.Event()
        self._outcomes = set[asyncio.Task[None]]()
        self._shown: dict[str, int] = {}
        self._connected = False

    def shown(self, conversation_id: str) -> int:
        """Return the seq that this run showed last."""
        return self._shown.get(conversation_id, 0)

    @property
    def unanswered(self) -> int:
        """How many commands have no outcome yet."""
        return len(self.client.pending())

    async def say(self, body: bytes, *, to_user: str) -> Ticket:
        """Send a message to a user, composed in sight of all that was shown."""
        conversation_id = direct_conversation_id(self.device.user_id, to_user)
        return self._follow(await self.client.send(to_user=to_user, body=body, seen_seq=self.shown(conversation_id)))

    async def say_in(self, conversation_id: str, body: bytes) -> Ticket:
        """Send a message into a conversation, likewise."""
        return self._follow(await self.client.send(conversation=conversation_id, body=body, seen_seq=self.shown(conversation_id)))

    async def create_group(self, title: str, members: Sequence[str]) -> str:
        """Create a group; return its id."""
        ticket = self._follow(await self.client.create_group(title, members))
        return group_conversation_id(*self.device, ticket.request_id)

    async def add_members(self, conversation_id: str, users: Sequence[str]) -> Ticket:
        """Add users to a group."""
        return self._follow(await self.client.add_members(conversation_id, users))

    async def leave(self, conversation_id: str) -> Ticket:
        """Leave a group."""
        return self._follow(await self.client.leave(conversation_id))

    def settle(self) -> None:
        """Note that all is answered and shown: whatever is missing is lost."""
        self._recorder.settle(self.client.conversations())

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that events, outcomes or receipts bring about."""
        while not condition():
            self._moved.clear()
            await self._moved.wait()

    def begin(self) -> None:
        """Show events, and follow what an earlier run asked."""
        for ticket in self.client.pending():
            self._follow(ticket)
        self._tasks.spawn(self._show(), name="events")
        self._tasks.spawn(self._watch(), name="notices")

    async def end(self) -> None:
        """Wait for the last outcomes, once the client is closed."""
        await asyncio.gather(*self._outcomes)

    def _follow(self, ticket: Ticket) -> Ticket:
        outcome = self._tasks.spawn(self._wait_for(ticket), name="outcome")
        self._outcomes.add(outcome)
        outcome.add_done_callback(self._outcomes.discard)
        return ticket

    async def _wait_for(self, ticket: Ticket) -> None:
        with suppress(RejectedError, ClosedError):  # closed: the command stays in the store; the next run learns its outcome
            await ticket.accepted()
        self._moved.set()

    async def _show(self) -> None:
        async for event in self.client.events():
            self._shown[event.conversation_id] = event.seq
            self.on_event(event)
            self._moved.set()

    async def _watch(self) -> None:
        with self.client.changes() as notices:
            async for notice in notices:
                if isinstance(notice, ConnectionChanged):
                    self._follow_connection(notice)
                self._moved.set()

    def _follow_connection(self, notice: ConnectionChanged) -> None:
        if notice.state is ConnectionState.CONNECTED:
            self._connected = True
        elif self._connected:
            self._connected = False
            self.ends.append(notice.detail or notice.state.value)


@asynccontextmanager
async def open_recorded_device(
    address: str,
    token: str,
    device: Device,
    store: Store,
    history: History,
    *,
    run: int = 1,
    file: RecordFile | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[RecordedDevice]:
    """Open a device whose facts go to the history, and to the file if there is one; leaving closes it, as an app is closed."""

    def note(fact: Fact) -> None:
        history.device(*device).take(fact)
        if file is not None:
            file.note(device, fact)

    recorder = Recorder(device, run, note)
    async with open_tasks(f"{device.user_id}-{device.device_id}") as tasks:
        async with open_client(
            address, token=token, device_id=device.device_id, store=store, clock=clock, rng=Impatient(), recorder=recorder
        ) as client:
            recorded = RecordedDevice(client, device, recorder, tasks)
            recorded.begin()
            yield recorded
        await recorded.end()


def _ignore(event: TimelineEvent) -> None:
    """Take no notice."""
