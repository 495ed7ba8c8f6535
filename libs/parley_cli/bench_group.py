"""`parley bench group`: one conversation with many members, all online; and `--churn`: all of them joining and leaving at once."""

import asyncio
import random
import time
from array import array
from dataclasses import dataclass
from typing import Any

from parley.api.v1.commands_pb2 import AddMembers, Command, CreateGroup, Leave, SendMessage
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_checker.history import Answered, Device, DeviceHistory, Entry, History, Shown, asked_of, entry_of
from parley_checker.judge import judge
from parley_checker.verdict import Verdict
from parley_cli import bench_bystanders
from parley_cli.bench_bystanders import open_bystanders
from parley_cli.bench_messages import DEVICE
from parley_cli.bench_pacer import arrivals
from parley_cli.bench_reads import read_timeline
from parley_cli.bench_report import percentiles_ms, progress
from parley_cli.bench_stream import Fleet, Follower, Stream, open_fleet
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError
from parley_client.ack_state import LARGE_INTERVAL_SECONDS, LARGE_MEMBER_COUNT, SMALL_INTERVAL_SECONDS
from parley_protocol.ids import group_conversation_id

QUIET_SECONDS = 60.0  # for a phase to be over: all answered, all shown
_BODY_BYTES = 100
_NEVER = float("inf")


@dataclass(frozen=True)
class GroupLoad:
    """What to offer to a group."""

    members: int
    rate: float
    seconds: float
    warm_seconds: float = 3.0


class Group:
    """The conversation under load: who is to get what, and how long it took."""

    def __init__(self) -> None:
        self.conversation_id = ""
        self.members: list[Member] = []
        self.deliveries = 0
        self.last_member_seconds = array("d")
        self.window_begin = self.window_end = _NEVER  # of due times that count
        self.longest_gap_seconds = 0.0
        self._expected = 0
        self._open = set[bytes]()  # commands without an outcome
        self._waiting: dict[bytes, tuple[float, int]] = {}  # messages: when they were due, how many members are to get them yet
        self._entries: dict[Entry, Entry] = {}  # one object for what hundreds of devices show
        self._quiet = asyncio.Event()
        self._last_delivery = 0.0

    def expect(self, request_id: bytes, due: float, count: int) -> None:
        """Note that a command was asked, whose event so many other devices are to show."""
        self._quiet.clear()
        self._open.add(request_id)
        self._expected += count
        if count:
            self._waiting[request_id] = due, count

    def answered(self, request_id: bytes) -> None:
        """Note an outcome."""
        self._open.discard(request_id)
        self._check()

    def shown(self, event: Event, now: float) -> Entry:
        """Note that some member shows an event; return it for the judge."""
        self.deliveries += 1
        self.longest_gap_seconds = max(self.longest_gap_seconds, now - self._last_delivery)
        self._last_delivery = now
        due, count = self._waiting.get(event.request_id, (_NEVER, 0))
        if count > 1:
            self._waiting[event.request_id] = due, count - 1
        elif count:
            del self._waiting[event.request_id]
            if self.window_begin <= due < self.window_end:
                self.last_member_seconds.append(now - due)
        self._check()
        entry = entry_of(event)
        return self._entries.setdefault(entry, entry)

    def begin_gaps(self) -> None:
        """Measure the longest time without a delivery from now on."""
        self.longest_gap_seconds, self._last_delivery = 0.0, time.monotonic()

    async def wait_quiet(self) -> bool:
        """Wait until all is answered and shown; return False if it does not come to that."""
        try:
            await asyncio.wait_for(self._quiet.wait(), QUIET_SECONDS)
        except TimeoutError:
            progress(
                f"after {QUIET_SECONDS:.0f} s {len(self._open)} outcomes, {self._expected - self.deliveries} events are missing"
            )
            return False
        return True

    def _check(self) -> None:
        if not self._open and self.deliveries >= self._expected:
            self._quiet.set()

    async def verdict(self, target: Target, fleet: Fleet) -> Verdict:
        """Judge all devices against the stored timeline, as the first member sees it; what a stream left out is fetched first."""
        stub = MessagingServiceStub(fleet.channels[0])
        if not await self.wait_quiet():
            for member in self.members:
                token = target.token_for(member.device.user_id)
                have = member.follower.have if member.follower else 0
                member.take([event async for event in read_timeline(stub, token, self.conversation_id, have)], [])
        token = target.token_for(self.members[0].device.user_id)
        stored = [entry_of(event) async for event in read_timeline(stub, token, self.conversation_id)]
        return judge(History({m.device: m.facts for m in self.members}, {"ListEvents": {self.conversation_id: stored}}))


class Member:
    """One member's device: what it asked, was answered and showed."""

    def __init__(self, group: Group, stream: Stream, rng: random.Random) -> None:
        self.device = Device(stream.user_id, DEVICE)
        self.stream = stream
        self.follower: Follower | None = None  # none: was no member yet
        self.facts = DeviceHistory(settled=True)
        self._group = group
        self._prefix = rng.randbytes(8)
        self._number = 0
        stream.on_batch = self._on_batch

    def ask(self, command: Command, due: float, others: int) -> None:
        """Compose a command, to be shown by so many other devices; the stream writes it at its next flush."""
        group = self._group
        self._number += 1
        command.request_id = self._prefix + self._number.to_bytes(8, "big")
        if command.HasField("create_group"):
            group.conversation_id = group_conversation_id(self.device.user_id, DEVICE, command.request_id)
        else:
            command.conversation_id = group.conversation_id
        self.facts.asked.append(asked_of(command, group.conversation_id))
        group.expect(command.request_id, due, others)
        self.stream.send(self._number, command)

    def take(self, events: list[Event], own_seqs: list[int]) -> None:
        """Show what can be shown now."""
        if self.follower is None:
            if not events and not own_seqs:
                return
            self.follower = Follower(min([*own_seqs, *(event.seq for event in events)]) - 1)  # the view begins with the join
        now = time.monotonic()
        for event in self.follower.take(events, own_seqs):
            self.facts.shown.append(Shown(1, self._group.shown(event, now)))

    def _on_batch(self, batch: ServerBatch) -> None:
        own_seqs = []
        for outcome in batch.outcomes:
            if not outcome.HasField("retry"):
                seq = outcome.accepted.seq  # 0: rejected
                self.facts.answered.append(Answered(outcome.request_id, self._group.conversation_id, seq))
                self._group.answered(outcome.request_id)
                if seq:
                    own_seqs.append(seq)
        self.take([event for event in batch.events if event.conversation_id == self._group.conversation_id], own_seqs)

    async def keep_acking(self, interval_seconds: tuple[float, float], rng: random.Random) -> None:
        """Acknowledge by the SDK's policy: at a time of one's own, all that came meanwhile."""
        acked = 0
        while True:
            await asyncio.sleep(rng.uniform(*interval_seconds))
            if self.follower is not None and self.follower.have > acked:
                acked = self.follower.have
                self.stream.ack(self._group.conversation_id, acked)
                await self.stream.flush()


async def _open_group(target: Target, fleet: Fleet, member_count: int, *, alone: bool) -> Group:
    """Connect the members and have the first create the group: with all of them, or for himself."""
    group = Group()
    streams = await fleet.connect([target.user("m", index) for index in range(member_count)], DEVICE)
    group.members = [Member(group, stream, target.rng) for stream in streams]
    interval = LARGE_INTERVAL_SECONDS if member_count > LARGE_MEMBER_COUNT else (SMALL_INTERVAL_SECONDS, SMALL_INTERVAL_SECONDS)
    for member in group.members:
        fleet.spawn(member.keep_acking(interval, target.rng), "acks")
    owner, *others = group.members
    action = CreateGroup(title="bench", member_user_ids=[] if alone else [member.device.user_id for member in others])
    owner.ask(Command(create_group=action), time.monotonic(), 0 if alone else len(others))
    await owner.stream.flush()
    if not await group.wait_quiet():
        raise CommandError("the group was not created everywhere in time")
    return group


async def measure_group(target: Target, load: GroupLoad) -> dict[str, Any]:
    """Have random members send at a rate; return the figures."""
    async with open_fleet(target.address, target.token_for) as fleet:
        progress(f"connecting {load.members} members")
        group = await _open_group(target, fleet, load.members, alone=False)
        progress(f"{load.warm_seconds:g} s of warming up, {load.seconds:g} s of measuring at {load.rate:g} messages a second")
        body = target.rng.randbytes(_BODY_BYTES)

        async def offer() -> None:
            async for due in arrivals(load.rate, load.warm_seconds + load.seconds, target.rng):
                member = target.rng.choice(group.members)
                member.ask(Command(send_message=SendMessage(body=body)), due, load.members - 1)
                fleet.spawn(member.stream.flush(), "flush")

        offering = fleet.spawn(offer(), "offer")
        await asyncio.sleep(load.warm_seconds)
        cpu_before = target.meter.cpu_seconds() if target.meter else 0.0
        before, group.window_begin = group.deliveries, time.monotonic()
        await asyncio.sleep(load.seconds)
        group.window_end = time.monotonic()
        deliveries, elapsed = group.deliveries - before, group.window_end - group.window_begin
        cpu = target.meter.cpu_seconds() - cpu_before if target.meter else None
        await offering
        if not deliveries:
            raise CommandError("no message arrived in the measured time")
        verdict = await group.verdict(target, fleet)
        result: dict[str, Any] = {
            "members": load.members,
            "offered_per_second": load.rate,
            "seconds": round(elapsed, 3),
            "deliveries_per_second": round(deliveries / elapsed, 1),
            "server_cpu_us_per_delivery": None if cpu is None else round(cpu / deliveries * 1e6, 1),
            "deliveries_per_second_per_core": round(deliveries / cpu, 1) if cpu else None,
            "server_cores": None if cpu is None else round(cpu / elapsed, 3),
            "last_member_latency_ms": percentiles_ms(group.last_member_seconds),
        }
        return result | verdict.counts() | {"stories": verdict.stories}


async def measure_churn(target: Target, load: GroupLoad) -> dict[str, Any]:
    """Have everybody join a group at once, each by a command of his own, then everybody leave at once, while others chat."""
    async with open_fleet(target.address, target.token_for) as fleet, open_bystanders(target) as bystanders:
        progress(f"connecting {load.members} members, {bench_bystanders.LOAD.pairs} pairs look on")
        group = await _open_group(target, fleet, load.members, alone=True)
        await asyncio.sleep(load.warm_seconds)
        owner, *others = group.members
        result: dict[str, Any] = {"members": load.members, "offered_per_second_beside": bench_bystanders.LOAD.rate}
        for phase in ("join", "leave"):
            progress(f"{len(others)} members {phase} at once")
            deliveries, cpu = group.deliveries, target.meter.cpu_seconds() if target.meter else 0.0
            await bystanders.begin_window()
            begin = time.monotonic()
            group.begin_gaps()
            # The k-th to join finds k members, the k-th to leave leaves all but k: as many events, whatever the order.
            for count, member in enumerate(others, 1):
                if phase == "join":
                    owner.ask(Command(add_members=AddMembers(user_ids=[member.device.user_id])), begin, count)
                else:
                    member.ask(Command(leave=Leave()), begin, len(others) - count + 1)
            await asyncio.gather(*(member.stream.flush() for member in group.members))
            await group.wait_quiet()
            elapsed, deliveries = time.monotonic() - begin, group.deliveries - deliveries
            used = target.meter.cpu_seconds() - cpu if target.meter else None
            result[phase] = {
                "seconds": round(elapsed, 3),
                "deliveries": deliveries,
                "server_cpu_us_per_delivery": None if used is None else round(used / deliveries * 1e6, 1),
                "longest_gap_ms": round(group.longest_gap_seconds * 1e3, 1),
                "latency_beside_ms": await bystanders.end_window(),
            }
        verdict = await group.verdict(target, fleet)
        verdict.add(await bystanders.verdict())
        return result | verdict.counts() | {"stories": verdict.stories}
