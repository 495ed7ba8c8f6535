"""Devices as apps use the SDK: they send, read, leave, come back, crash, and write down what they asked and saw."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc

from chassis.testing.faults import REPLACED, Life
from parley.api.v1 import events_pb2
from parley.api.v1.commands_pb2 import Role
from parley.api.v1.messaging_service_pb2 import ConnectRequest, GetConversationRequest, Hello
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_checker.history import Answered, Asked, Device, Fact, History, ReadBack, Shown
from parley_client import Client, ClientError, ClientOptions, MemoryStore, RejectedError, SignedOffError, Ticket, open_client
from parley_client.recording import Recorder
from parley_client.store import Change, Kept
from parley_protocol.ids import direct_conversation_id, group_conversation_id
from parley_simulation.network import Endpoint, Radio
from parley_simulation.processes import Incarnation, Simulation
from services.gateway.keys import mint_token

TOKEN_SECONDS = 400 * 24 * 3600.0
READ_BACK = 0.2  # of what is accepted is looked up at some gateway
READ_SECONDS = 10.0
CALM = 0.84  # of what a device may do: below, it neither leaves nor crashes
OPTIONS = ClientOptions(first_sync_events=3, sync_events=2, sync_page_conversations=2, page_events=4, in_flight_commands=4)  # tiny


class MortalStore:
    """A device's storage as one run of its process sees it: the dead write nothing."""

    def __init__(self, inner: MemoryStore, process: Incarnation) -> None:
        self._inner = inner
        self._process = process

    def load(self) -> Kept:
        return self._inner.load()

    def commit(self, change: Change) -> None:
        self._process.life.require_alive()
        self._inner.commit(change)

    def unconsumed(self, after_ordinal: int, limit: int) -> Sequence[tuple[int, events_pb2.Event]]:
        return self._inner.unconsumed(after_ordinal, limit)

    def events(self, conversation_id: str, first_seq: int, before_seq: int, limit: int) -> Sequence[events_pb2.Event]:
        return self._inner.events(conversation_id, first_seq, before_seq, limit)

    def count_of_others(self, conversation_id: str, user_id: str, after_seq: int) -> int:
        return self._inner.count_of_others(conversation_id, user_id, after_seq)

    def close(self) -> None:
        """Leave the storage to the next run."""


@dataclass
class Crowd:
    """What the devices of one run share: whom they write to, and what the judge must know."""

    users: Sequence[str]
    gateways: Sequence[Endpoint] = ()
    history: History = field(default_factory=History)
    directs: dict[str, tuple[str, str]] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    numbers: int = 0
    restlessness: float = 1.0  # CALM to 1.0
    attention: float = 0.5  # the share of events that somebody marks as read, rather than showing it by an answer


class SimulatedDevice:
    """One device over all runs of its process."""

    def __init__(
        self, simulation: Simulation, crowd: Crowd, device: Device, gateways: Mapping[str, Endpoint], key: Any, actions: int
    ) -> None:
        self.device = device
        self.client: Client | None = None
        self.idle = asyncio.Event()  # nothing more to do, and all that was asked is answered
        self._simulation = simulation
        self._crowd = crowd
        self._gateways = gateways  # by address
        self._token = mint_token(key, device.user_id, device.device_id, TOKEN_SECONDS, simulation.clock.wall_ms() / 1000)
        self._actions_left = actions
        self._rng = Random(f"{simulation.seed}/{device.device_id}")
        self._store = MemoryStore()
        self._runs = 0
        self._recorder: Recorder | None = None
        self._key = key
        self._readers = 0
        self._stream = simulation.faults.stream(f"user of {device.device_id}")
        self._at_home = asyncio.Event()
        self._at_home.set()
        self._facts = crowd.history.device(*device)

    async def run(self, process: Incarnation) -> None:
        """Be the device's process."""
        await self._at_home.wait()
        self._runs += 1
        self.client = None
        self.idle.clear()
        self._recorder = Recorder(self.device, self._runs, self._take)
        stream = self._simulation.faults.stream(f"link of {process.name}")
        radio = Radio(self._gateways, process.name, stream)
        homes = list(self._gateways)
        self._rng.shuffle(homes)
        async with open_client(
            ",".join(homes),
            open_channel=radio.open_channel,
            token=self._token,
            device_id=self.device.device_id,
            store=MortalStore(self._store, process),
            clock=self._simulation.clock,
            rng=process.rng,
            options=OPTIONS,
            recorder=self._recorder,
        ) as client:
            self.client = client
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read(client))
                    answers = [group.create_task(self._note_answer(ticket)) for ticket in client.pending()]
                    await self._act(process, client, radio, group, answers)
                    for answer in answers:
                        await answer
                    self.idle.set()
                    await asyncio.Event().wait()
            except* SignedOffError:
                process.life.die("sent away for good: the user opens the app again")
                await asyncio.Event().wait()

    def go_away(self, life: Life) -> None:
        """Be switched off with whatever is pending, until `come_back`."""
        self._at_home.clear()
        self.idle.clear()
        life.die("switched off for weeks")

    def come_back(self) -> None:
        """Be switched on again."""
        self._at_home.set()

    async def _read(self, client: Client) -> None:
        async for event in client.events():
            if self._rng.random() < self._crowd.attention:
                await client.mark_read(event.conversation_id, event.seq)
            if self._rng.random() < 0.2:
                await asyncio.sleep(self._rng.uniform(0.0, 1.0))

    async def _act(
        self, process: Incarnation, client: Client, radio: Radio, group: asyncio.TaskGroup, answers: list[asyncio.Task[None]]
    ) -> None:
        rng = self._rng
        while self._actions_left:
            self._actions_left -= 1
            if self._stream.happens(REPLACED):
                group.create_task(self._connect_twice(radio))
            kind = rng.uniform(0.0, self._crowd.restlessness)
            if kind < 0.80:
                ticket = await self._command(client)
                answers.append(group.create_task(self._note_answer(ticket)))
                if rng.random() < 0.3:
                    await asyncio.wait([answers[-1]], timeout=60.0)
            elif kind < CALM:
                if conversations := client.conversations():
                    await self._look_up(client, rng.choice(conversations).conversation_id)
            elif kind < 0.92:
                radio.cut("the device lost its network")
            elif kind < 0.96:
                with radio.without_network():
                    await asyncio.sleep(rng.uniform(1.0, 60.0))
            else:
                process.life.die("a crash of the app")
            await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0.0, 0.3), rng.uniform(0.0, 15.0))))

    async def _look_up(self, client: Client, conversation_id: str) -> None:
        try:
            match self._rng.randint(0, 5):
                case 0:
                    await client.list_members(conversation_id)
                case 1:
                    await client.get_presence(self._crowd.users)
                case _:
                    await client.history(conversation_id, limit=self._rng.randint(1, 10))
        except ClientError:
            return  # offline, or a member no more: the app shows what it has

    async def _connect_twice(self, radio: Radio) -> None:
        """Open another stream of this very device for a moment, as by a copied app, or by one that was started twice."""
        metadata = (("authorization", f"Bearer {self._token}"),)
        try:
            async with radio.open_channel(self._rng.choice(list(self._gateways))) as channel:
                call = MessagingServiceStub(channel).Connect(metadata=metadata, timeout=self._rng.uniform(0.1, READ_SECONDS))
                await call.write(ConnectRequest(hello=Hello(device_id=self.device.device_id)))
                while await call.read() is not grpc.aio.EOF:
                    pass
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # as grpc.aio says that a call has ended
            return

    async def _command(self, client: Client) -> Ticket:
        rng, crowd, user = self._rng, self._crowd, self.device.user_id
        crowd.numbers += 1
        body = f"{self.device.device_id} {crowd.numbers}".encode()
        if len(crowd.groups) < 2 and rng.random() < 0.3:
            ticket = await client.create_group("group", rng.sample(crowd.users, rng.randint(1, 2)))
            conversation_id = group_conversation_id(*self.device, ticket.request_id)
            crowd.groups.append(conversation_id)
            return ticket
        if not crowd.groups or rng.random() < 0.5:
            peer = rng.choice(crowd.users)
            conversation_id = direct_conversation_id(user, peer)
            crowd.directs[conversation_id] = (user, peer)
            seen = max((c.held_seq for c in client.conversations() if c.conversation_id == conversation_id), default=0)
            return await client.send(to_user=peer, body=body, seen_seq=seen)
        conversation_id = rng.choice(crowd.groups)
        other = rng.choice(crowd.users)
        match rng.choices(("message", "add", "remove", "leave", "role", "title"), (60, 14, 8, 4, 6, 4))[0]:
            case "message":
                return await client.send(conversation=conversation_id, body=body)
            case "add":
                return await client.add_members(conversation_id, rng.sample(crowd.users, rng.randint(1, 2)))
            case "remove":
                return await client.remove_member(conversation_id, other)
            case "leave":
                return await client.leave(conversation_id)
            case "role":
                role = rng.choice((Role.ROLE_MEMBER, Role.ROLE_ADMIN))
                return await client.change_role(conversation_id, other, role)
            case _:
                return await client.rename(conversation_id, f"title {rng.randint(0, 3)}")

    async def _note_answer(self, ticket: Ticket) -> None:
        try:
            accepted = await ticket.accepted()
        except RejectedError:
            return
        if self._rng.random() < READ_BACK:
            await self._read_back(accepted.conversation_id, accepted.seq)

    async def _read_back(self, conversation_id: str, least_seq: int) -> None:
        """Ask any gateway for a conversation, as another device of the user would; the first answer counts."""
        self._readers += 1
        reader = f"{self.device.device_id}-reader-{self._readers}"  # a rate of its own
        link = self._simulation.faults.stream(f"link of {reader}")
        token = mint_token(self._key, self.device.user_id, reader, TOKEN_SECONDS, self._simulation.clock.wall_ms() / 1000)
        metadata = (("authorization", f"Bearer {token}"),)
        try:
            async with self._rng.choice(self._crowd.gateways).connect(reader, link, keepalive=True) as channel:
                request = GetConversationRequest(conversation_id=conversation_id)
                found = await MessagingServiceStub(channel).GetConversation(request, metadata=metadata, timeout=READ_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                self._take(ReadBack(conversation_id, least_seq, 0))
            return  # else no answer: the app would ask again
        self._take(ReadBack(conversation_id, least_seq, found.conversation.head_seq))

    def _take(self, fact: Fact) -> None:
        self._facts.take(fact)
        match fact:
            case Asked(request_id, conversation_id, kind, _):
                self._note(f"asks {request_id.hex()} {kind} in {conversation_id}")
            case Answered(request_id, _, seq):
                self._note(f"is told of {request_id.hex()}: {f'seq {seq}' if seq else 'rejected'}")
            case Shown(_, entry):
                self._note(f"shows {entry.request_id.hex()} at {entry.conversation_id} seq {entry.seq}")

    def _note(self, what: str) -> None:
        self._simulation.trace.note(self.device.device_id, what)

    def finish(self) -> None:
        """Note what the device holds at the end, for the judge."""
        assert self.client is not None
        assert self._recorder is not None
        self._recorder.settle(self.client.conversations())
