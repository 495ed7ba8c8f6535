"""The load: users with several devices each, who write to each other and into a group, from real clients of the SDK."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc

from chassis.clock import Clock
from chassis.tasks import Tasks, open_tasks
from parley.api.v1.messaging_service_pb2 import ListEventsRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_chaos.recorded_device import RecordedDevice, open_recorded_device
from parley_checker.history import Device, Entry, History, entry_of
from parley_client import CallError, MemoryStore
from parley_protocol.ids import direct_conversation_id

USERS: Final = ("alice", "bob", "carol", "dora")
DEVICES: Final = ("phone", "laptop")
_PACE_SECONDS: Final = (0.02, 0.2)  # between two messages of a device
_GROUP_SHARE: Final = 0.3
_READ_SHARE: Final = 0.2
_QUESTION_SHARE: Final = 0.2
_PAGE: Final = 200
_CALL_SECONDS: Final = 10.0


class LoadStoppedError(Exception):
    """Traffic did not flow again in time; the message says what waits."""


class Load:
    """Running devices; made by `open_load`."""

    def __init__(self, devices: Sequence[RecordedDevice], history: History, group_id: str, tasks: Tasks) -> None:
        self.devices = devices
        self.users = list(dict.fromkeys(device.device.user_id for device in devices))
        self.history = history
        self._group_id = group_id
        self._tasks = tasks
        self.refused: list[str] = []  # questions that got an error: what a user sees of a fault, messages being sent again
        self._stop = asyncio.Event()
        self._writing: list[asyncio.Task[None]] = []

    @property
    def asked(self) -> int:
        """How many commands were composed so far."""
        return sum(len(own.asked) for own in self.history.devices.values())

    @property
    def answered(self) -> int:
        """How many of them have an outcome."""
        return sum(len(own.answered) for own in self.history.devices.values())

    def begin(self, rng: random.Random) -> None:
        """Let everybody write until told to stop."""
        for device in self.devices:
            own = random.Random(rng.getrandbits(64))
            self._writing.append(self._tasks.spawn(self._write(device, own), name=f"write.{device.device}"))

    async def _write(self, device: RecordedDevice, rng: random.Random) -> None:
        number = 0
        others = [user for user in self.users if user != device.device.user_id]
        while not self._stop.is_set():
            number += 1
            body = f"{device.device} {number}".encode() + rng.randbytes(rng.randrange(100))
            if rng.random() < _GROUP_SHARE:
                conversation_id = self._group_id
                await device.say_in(conversation_id, body)
            else:
                peer = rng.choice(others)
                conversation_id = direct_conversation_id(device.device.user_id, peer)
                await device.say(body, to_user=peer)
            if rng.random() < _READ_SHARE and (seq := device.shown(conversation_id)):
                await device.client.mark_read(conversation_id, seq)
            if rng.random() < _QUESTION_SHARE:
                try:
                    # Of the store, and by way of a router of the gateways: what is asked on all links.
                    await device.client.get_conversation(self._group_id)
                    await device.client.get_presence(others)
                except CallError as error:
                    self.refused.append(f"{device.device}: {error.code.name} {error.detail}")
            await asyncio.sleep(rng.uniform(*_PACE_SECONDS))

    async def wait_flowing(self, seconds: float) -> None:
        """Wait until each device has an answer to something that it asks from now on, and to all that it asked before.

        Raises LoadStoppedError after `seconds`.
        """
        before = {device.device: {ticket.request_id for ticket in device.client.pending()} for device in self.devices}
        answered = {device.device: len(self.history.device(*device.device).answered) for device in self.devices}

        def flows(device: RecordedDevice) -> bool:
            left = before[device.device] & {ticket.request_id for ticket in device.client.pending()}
            return not left and len(self.history.device(*device.device).answered) > answered[device.device]

        await self._wait_all(flows, seconds, "has no answer to what it asked")

    async def stop(self) -> None:
        """Let nobody write any more."""
        self._stop.set()
        await asyncio.gather(*self._writing)

    async def settle(self, seconds: float) -> None:
        """Stop writing, and wait until everything is answered and shown everywhere. Raises LoadStoppedError after `seconds`."""
        await self.stop()
        await self._wait_all(lambda device: not device.unanswered, seconds, "has no answer to what it asked")
        heads: dict[str, int] = {}
        for own in self.history.devices.values():
            for answer in own.answered:
                heads[answer.conversation_id] = max(heads.get(answer.conversation_id, 0), answer.seq)

        def shows_all(device: RecordedDevice) -> bool:
            return all(device.shown(conversation) >= heads.get(conversation, 0) for conversation in self.conversations_of(device))

        await self._wait_all(shows_all, seconds, "does not show all that was stored")
        for device in self.devices:
            device.settle()

    async def _wait_all(self, condition: Callable[[RecordedDevice], bool], seconds: float, what: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                for device in self.devices:
                    await device.wait_until(lambda device=device: condition(device))  # type: ignore[misc]
        except TimeoutError:
            late = [device for device in self.devices if not condition(device)]
            names = ", ".join(f"{device.device} ({device.client.connection.value})" for device in late)
            raise LoadStoppedError(f"after {seconds:g} s {names} {what}") from None

    def conversations_of(self, device: RecordedDevice) -> list[str]:
        """Return the conversations that a device's user takes part in."""
        user = device.device.user_id
        return [self._group_id, *(direct_conversation_id(user, peer) for peer in self.users if peer != user)]

    async def read_back(self, address: str, token_for: Callable[[str], str]) -> dict[str, list[Entry]]:
        """Read all timelines through one gateway, as new devices would."""
        found: dict[str, list[Entry]] = {}
        async with grpc.aio.insecure_channel(address) as channel:
            stub = MessagingServiceStub(channel)
            for device in self.devices:
                for conversation_id in self.conversations_of(device):
                    if conversation_id not in found:
                        entries = await _read(stub, token_for(device.device.user_id), conversation_id)
                        if entries:
                            found[conversation_id] = entries
        return found


async def _read(stub: MessagingServiceStub, token: str, conversation_id: str) -> list[Entry]:
    metadata = (("authorization", f"Bearer {token}"),)
    entries: list[Entry] = []
    while True:
        request = ListEventsRequest(conversation_id=conversation_id, after_seq=entries[-1].seq if entries else 0, page_size=_PAGE)
        try:
            page = await stub.ListEvents(request, metadata=metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                return []  # nobody has written there
            raise
        entries += map(entry_of, page.events)
        if not page.events:
            return entries


@asynccontextmanager
async def open_load(
    address: str, token_for: Callable[[str], str], suffix: str = "", clock: Clock | None = None
) -> AsyncIterator[Load]:
    """Connect all devices to a cluster's gateways and make the group; `Load.begin` lets them write.

    `suffix` ends the users' names: those of an earlier load have a past that this one does not know.
    """
    history = History()
    users = [f"{user}{suffix}" for user in USERS]
    async with AsyncExitStack() as stack, open_tasks("chaos.load") as tasks:
        devices = [
            await stack.enter_async_context(
                open_recorded_device(address, token_for(user), Device(user, device), MemoryStore(), history, clock=clock)
            )
            for user in users
            for device in DEVICES
        ]
        for device in devices:
            await device.client.caught_up()
        group_id = await devices[0].create_group("all", users[1:])
        for device in devices:
            await device.wait_until(lambda device=device: device.shown(group_id) > 0)  # type: ignore[misc]
        yield Load(devices, history, group_id, tasks)
