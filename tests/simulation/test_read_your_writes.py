"""G10: who was told that a command is stored finds it, whichever gateway and whichever store he asks."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import pytest
from conftest import SEEDS_MAX

from chassis.eventlog import EventLog, LogEntry
from chassis.testing.faults import POWER_LOST, SLOW
from chassis.timeline import Row, Timeline
from parley.api.v1.messaging_service_pb2 import GetConversationRequest, ListEventsRequest
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_client import RejectedError, Ticket
from parley_protocol.topics import EVENTS
from parley_simulation import devices, world
from parley_simulation.devices import SimulatedDevice
from parley_simulation.machine import Machine
from parley_simulation.processes import BrokenError
from parley_simulation.world import KEY, run_world
from services.gateway.keys import mint_token
from services.store.apply import Applier
from services.store.rows import STATE

SEEDS = range(6)
POWER = {POWER_LOST: 1.0, SLOW: 0.5}  # so that applying the log again takes a while
found: list[int] = []  # seqs that were there
missed: list[str] = []  # what was not, though its sender had been told


class AskingDevice(SimulatedDevice):
    """Asks every gateway for what it was told is stored, as another device of its user would."""

    async def _note_answer(self, ticket: Ticket) -> None:
        await super()._note_answer(ticket)
        try:
            accepted = await ticket.accepted()
        except RejectedError:
            return
        await asyncio.gather(*(self._ask(endpoint, ticket.request_id, accepted) for endpoint in self._crowd.gateways))

    async def _ask(self, endpoint: Any, request_id: bytes, accepted: Any) -> None:
        """Ask until there is an answer; the first one must know."""
        stream = self._simulation.faults.stream(f"link of a reader {request_id.hex()}")
        reader = f"reader-{request_id.hex()}"  # a rate of its own
        token = mint_token(KEY, self.device.user_id, reader, 400 * 24 * 3600.0, self._simulation.clock.wall_ms() / 1000)
        metadata = (("authorization", f"Bearer {token}"),)
        page = ListEventsRequest(conversation_id=accepted.conversation_id, after_seq=accepted.seq - 1, page_size=1)
        while not self._simulation.faults.healed:
            try:
                async with endpoint.connect(reader, stream, keepalive=True) as channel:
                    stub = MessagingServiceStub(channel)
                    conversation = GetConversationRequest(conversation_id=accepted.conversation_id)
                    seen = await stub.GetConversation(conversation, metadata=metadata, timeout=10)
                    events = (await stub.ListEvents(page, metadata=metadata, timeout=10)).events
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                    missed.append(f"{self.device} was told {accepted}, and then: {error.details()}")
                    return
                await asyncio.sleep(0.5)
                continue
            if seen.conversation.head_seq < accepted.seq or [event.request_id for event in events] != [request_id]:
                missed.append(f"{self.device} was told {accepted} and found {seen} and {events}")
            found.append(accepted.seq)
            return


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SimulatedDevice", AskingDevice)
    found.clear()
    missed.clear()


def test_what_is_accepted_is_there_for_whoever_asks():
    for seed in SEEDS:
        run_world(seed)
    assert missed == []
    assert len(found) > 100


class LastingDevice(AskingDevice):
    """Asks again and again, for as long as it takes until power was lost and is back."""

    async def _note_answer(self, ticket: Ticket) -> None:
        for _ in range(20):
            await super()._note_answer(ticket)
            await asyncio.sleep(2.0)


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "SimulatedDevice", LastingDevice)
    monkeypatch.setattr(devices, "READ_BACK", 0.0)  # these ask more than that


@pytest.mark.usefixtures("lasting")
def test_what_was_accepted_is_there_for_whoever_asks_after_a_loss_of_power():
    reports = [run_world(seed, rates=POWER) for seed in SEEDS[:3]]
    assert missed == []
    assert len(found) > 300
    assert sum(report.faults[POWER_LOST] for report in reports) > 5


@pytest.mark.usefixtures("lasting")
def test_gateways_that_serve_before_the_log_was_applied_again_are_found(monkeypatch):
    async def wait_restored(*_: Any) -> None:
        return

    monkeypatch.setattr(Machine, "wait_restored", wait_restored)
    for seed in range(SEEDS_MAX):
        run_world(seed, rates=POWER)
        if missed:
            return
    pytest.fail(f"survived {SEEDS_MAX} seeds")


class HastyEngines:
    """Log and tables of a store that tells before it has written what readers take heads from."""

    def __init__(self, log: EventLog, timeline: Timeline) -> None:
        self._log = log
        self._timeline = timeline
        self._late: dict[Any, list[Row]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timeline if name.startswith("read") else self._log, name)

    async def write(self, rows: list[Row]) -> None:
        if rows[0].table == STATE:
            self._late[asyncio.current_task()] = rows
        else:
            await self._timeline.write(rows)

    async def append(self, topic: str, partition: int, entries: list[LogEntry]) -> None:
        await self._log.append(topic, partition, entries)
        if topic == EVENTS and (rows := self._late.pop(asyncio.current_task(), None)):
            await self._timeline.write(rows)


def publish_before_the_states_are_written(patch: pytest.MonkeyPatch) -> None:
    original = Applier.__init__

    def init(self: Applier, settings: Any, *, log: EventLog, timeline: Timeline, **rest: Any) -> None:
        engines: Any = HastyEngines(log, timeline)
        original(self, settings, log=engines, timeline=engines, **rest)

    patch.setattr(Applier, "__init__", init)


def test_a_store_that_tells_before_it_has_written_is_found(monkeypatch):
    publish_before_the_states_are_written(monkeypatch)
    for seed in range(SEEDS_MAX):
        with suppress(BrokenError):  # other guarantees break as well
            run_world(seed)
        if missed:
            return
    pytest.fail(f"survived {SEEDS_MAX} seeds")
