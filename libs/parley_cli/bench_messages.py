"""`parley bench messages`: pairs of users, one device each, as many messages as the server takes or as were ordered.

Every message is accounted for: what the senders asked and were answered, what the recipients got, and what the tables hold at the
end go to the judge of the delivery contract.
"""

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parley.api.v1.commands_pb2 import Command, SendMessage
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley.api.v1.messaging_service_pb2_grpc import MessagingServiceStub
from parley_checker.history import Answered, Asked, Device, Entry, History, Shown, entry_of
from parley_checker.judge import judge
from parley_checker.verdict import Verdict
from parley_cli.bench_meter import cpu_by_part
from parley_cli.bench_pacer import arrivals
from parley_cli.bench_reads import read_timeline
from parley_cli.bench_report import percentiles_ms, progress
from parley_cli.bench_stream import Fleet, Follower, Stream, open_fleet
from parley_cli.bench_target import Target
from parley_cli.failures import CommandError
from parley_client.ack_state import SMALL_INTERVAL_SECONDS
from parley_protocol.ids import direct_conversation_id

DEVICE = "d1"
QUIET_SECONDS = 30.0  # for what is under way when the time is over
_BODY_BYTES = 100
_REPORT_SECONDS = 5.0
_REJECTED = -1
_NEVER = float("inf")
_READERS = 8  # timelines read back at the same time


@dataclass(frozen=True)
class MessageLoad:
    """What to offer: `rate` 0 is a closed loop with `window` messages of each pair under way."""

    pairs: int
    window: int
    seconds: float
    rate: float = 0.0
    receipts: bool = True
    warm_seconds: float = 3.0
    most: int = 0  # messages of each pair; 0: no end


class Tally:
    """What happened to all pairs so far."""

    def __init__(self, most: int = 0) -> None:
        self.most = most  # messages to ask for in all; 0: no end
        self.asked = self.answered = self.shown = self.fetched = 0
        self.answer_seconds = array("d")
        self.delivery_seconds = array("d")
        self.window_begin = self.window_end = _NEVER  # of due times that count
        self.sending = True
        self.quiet = asyncio.Event()

    def begin_window(self) -> None:
        """Measure what is due from now on."""
        self.answer_seconds, self.delivery_seconds = array("d"), array("d")
        self.window_begin, self.window_end = time.monotonic(), _NEVER

    def end_window(self) -> None:
        """Measure nothing that is due from now on; what was due before still counts when it comes."""
        self.window_end = time.monotonic()

    def check_quiet(self) -> None:
        """Note the moment when nothing more is asked and all that was is answered and shown."""
        if (not self.sending or self.asked >= self.most > 0) and self.answered >= self.asked and self.shown >= self.asked:
            self.quiet.set()


class Pair:
    """One user who sends to one other. Facts are kept as numbers: some 40 bytes a message."""

    def __init__(self, target: Target, index: int, tally: Tally, load: MessageLoad) -> None:
        self.sender = Device(target.user("a", index), DEVICE)
        self.recipient = Device(target.user("b", index), DEVICE)
        self.conversation_id = direct_conversation_id(self.sender.user_id, self.recipient.user_id)
        self.sending: Stream
        self.receiving: Stream
        self.follower = Follower()
        self._prefix = target.rng.randbytes(8)
        self._padding = target.rng.randbytes(_BODY_BYTES - 8)
        self._ack_phase = target.rng.uniform(0, SMALL_INTERVAL_SECONDS)
        self._tally = tally
        self._load = load
        self._due = array("d", [0.0])  # by number, counted from 1
        self._seqs = array("q", [0])  # by number: its answer; 0: none yet
        self._numbers = array("q", [0])  # by seq: the number shown there; 0: see _odd
        self._odd: dict[int, Entry] = {}  # by seq: what was shown instead of what was expected
        self._contradicting: list[Answered] = []
        self._repair: Callable[[Pair], None]
        self._repairing = False

    def attach(self, sending: Stream, receiving: Stream, repair: "Callable[[Pair], None]") -> None:
        """Take the two devices' streams; `repair` is called when events are missing and must see that `fetch` runs."""
        self.sending, self.receiving, self._repair = sending, receiving, repair
        sending.on_batch = self._on_sender_batch
        receiving.on_batch = self._on_recipient_batch

    def ask(self, count: int, due: float) -> None:
        """Compose the next messages; the stream writes them at its next flush."""
        if self._load.most:
            count = min(count, self._load.most - len(self._due) + 1)
        for _ in range(count):
            number = len(self._due)
            self._due.append(due)
            self._seqs.append(0)
            message = SendMessage(body=self._body(number))
            self.sending.send(
                number, Command(request_id=self._request_id(number), to_user_id=self.recipient.user_id, send_message=message)
            )
        self._tally.asked += count

    @property
    def has_asked(self) -> bool:
        """Whether it was its turn yet: before, there is no such conversation."""
        return len(self._due) > 1

    def _body(self, number: int) -> bytes:
        return number.to_bytes(8, "big") + self._padding

    def _request_id(self, number: int) -> bytes:
        return self._prefix + number.to_bytes(8, "big")

    def _on_sender_batch(self, batch: ServerBatch) -> None:
        tally, now, answered = self._tally, time.monotonic(), 0
        for outcome in batch.outcomes:
            if outcome.HasField("retry"):
                continue
            number = int.from_bytes(outcome.request_id[8:], "big")
            seq = outcome.accepted.seq if outcome.HasField("accepted") else _REJECTED
            if not 0 < number < len(self._seqs) or self._seqs[number]:
                if not 0 < number < len(self._seqs) or self._seqs[number] != seq:
                    self._contradicting.append(Answered(outcome.request_id, self.conversation_id, max(seq, 0)))
                continue
            self._seqs[number] = seq
            answered += 1
            if tally.window_begin <= self._due[number] < tally.window_end:
                tally.answer_seconds.append(now - self._due[number])
        if answered:
            tally.answered += answered
            if tally.sending and not self._load.rate:
                self.ask(answered, now)
            tally.check_quiet()

    def _on_recipient_batch(self, batch: ServerBatch) -> None:
        if batch.events:
            self._show(self.follower.take(batch.events))
            if self.follower.early and not self._repairing:
                self._repairing = True
                self._repair(self)

    def _show(self, events: list[Event]) -> None:
        tally, now = self._tally, time.monotonic()
        for event in events:
            number = int.from_bytes(event.request_id[8:], "big")
            if self._is_expected(event, number):
                self._numbers.append(number)
                due = self._due[number]
                if tally.window_begin <= due < tally.window_end:
                    tally.delivery_seconds.append(now - due)
            else:
                self._numbers.append(0)
                self._odd[event.seq] = entry_of(event)
        tally.shown += len(events)
        if self._load.receipts and events:
            self.receiving.ack(self.conversation_id, self.follower.have)
        tally.check_quiet()

    def _is_expected(self, event: Event, number: int) -> bool:
        return (
            event.request_id[:8] == self._prefix
            and 0 < number < len(self._due)
            and event.message.body == self._body(number)
            and event.actor_user_id == self.sender.user_id
            and event.conversation_id == self.conversation_id
            and event.actor_device_id == DEVICE
        )

    async def keep_acking(self) -> None:
        """Write acknowledgements as often as the SDK does, and as little in step with others: together all would be one burst."""
        await asyncio.sleep(self._ack_phase)
        while True:
            await asyncio.sleep(SMALL_INTERVAL_SECONDS)
            if self.receiving.has_acks:
                await self.receiving.flush()

    async def fetch(self, stub: MessagingServiceStub, token: str) -> None:
        """Fetch what the stream did not bring, as a client does on a gap or at Sync."""
        fetched = [event async for event in read_timeline(stub, token, self.conversation_id, self.follower.have)]
        ready = self.follower.take(fetched)
        self._repairing = False
        self._tally.fetched += len(ready)
        self._show(ready)

    async def verdict(self, stub: MessagingServiceStub, token: str) -> Verdict:
        """Read the timeline back as a fresh device of the recipient and judge all facts."""
        if not self.has_asked:
            return Verdict()
        history = History()
        sender, recipient = history.device(*self.sender), history.device(*self.recipient)
        for number in range(1, len(self._seqs)):
            request_id = self._request_id(number)
            sender.asked.append(Asked(request_id, self.conversation_id, "message", self._body(number)))
            if seq := self._seqs[number]:
                sender.answered.append(Answered(request_id, self.conversation_id, max(seq, 0)))
        sender.answered += self._contradicting
        recipient.shown = [Shown(1, self._shown_at(seq)) for seq in range(1, len(self._numbers))]
        sender.settled = recipient.settled = True
        stored = [entry_of(event) async for event in read_timeline(stub, token, self.conversation_id)]
        history.readings["ListEvents"] = {self.conversation_id: stored}
        return judge(history)

    def _shown_at(self, seq: int) -> Entry:
        if number := self._numbers[seq]:
            request_id = self._request_id(number)
            return Entry(self.conversation_id, seq, self.sender, request_id, "message", self._body(number))
        return self._odd[seq]


class Load:
    """A running load of messages between pairs; made by `open_load`."""

    def __init__(self, target: Target, fleet: Fleet, pairs: list[Pair], tally: Tally, load: MessageLoad) -> None:
        self.tally = tally
        self.pairs = pairs
        self._target = target
        self._fleet = fleet
        self._load = load
        self._stub = MessagingServiceStub(fleet.channels[0])

    async def begin(self) -> None:
        """Fill every pair's window (closed loop)."""
        now = time.monotonic()
        for pair in self.pairs:
            pair.ask(self._load.window, now)
        await asyncio.gather(*(pair.sending.flush() for pair in self.pairs))

    async def offer(self, seconds: float) -> None:
        """Ask for messages of random pairs at the ordered rate (open loop)."""
        rng = self._target.rng
        async for due in arrivals(self._load.rate, seconds, rng):
            pair = rng.choice(self.pairs)
            pair.ask(1, due)
            self._fleet.spawn(pair.sending.flush(), "flush")

    async def wait_all(self) -> None:
        """Wait until the most that is to be asked is answered and shown, and tell how it goes. Raises CommandError if it stops."""
        tally = self.tally
        while not tally.quiet.is_set():
            before = tally.shown
            try:
                await asyncio.wait_for(tally.quiet.wait(), _REPORT_SECONDS)
            except TimeoutError:
                progress(f"{tally.shown} of {tally.most}")
                if tally.shown == before:
                    raise CommandError(f"no message arrived for {_REPORT_SECONDS:g} s") from None

    async def end(self) -> None:
        """Ask for nothing more and wait until all is answered and shown; what a stream did not bring is fetched."""
        self.tally.sending = False
        self.tally.check_quiet()
        try:
            await asyncio.wait_for(self.tally.quiet.wait(), QUIET_SECONDS)
        except TimeoutError:
            progress(f"not all answered and shown after {QUIET_SECONDS:.0f} s; fetching what is missing")
            for pair in self.pairs:
                if pair.has_asked:
                    await self._fetch(pair)

    def repair(self, pair: Pair) -> None:
        """Have a pair's recipient fetch what its stream left out."""
        self._fleet.spawn(self._fetch(pair), "fetch")

    async def _fetch(self, pair: Pair) -> None:
        await pair.fetch(self._stub, self._target.token_for(pair.recipient.user_id))

    async def verdict(self) -> Verdict:
        """Read everything back and judge it."""
        total, left, told = Verdict(), list(self.pairs), time.monotonic()

        async def read_some() -> None:
            nonlocal told
            while left:
                pair = left.pop()
                total.add(await pair.verdict(self._stub, self._target.token_for(pair.recipient.user_id)))
                if time.monotonic() - told > _REPORT_SECONDS:
                    told = time.monotonic()
                    progress(f"read back and judged {total.stored} of {self.tally.asked}")

        async with asyncio.TaskGroup() as group:
            for _ in range(_READERS):
                group.create_task(read_some())
        return total

    def stream_counts(self) -> dict[str, int]:
        """Return how often the protocol's repairs were needed."""
        return {
            "retries": sum(pair.sending.retries for pair in self.pairs),
            "repeated": sum(pair.follower.repeated for pair in self.pairs),
            "fetched": self.tally.fetched,
        }


async def connect_load(target: Target, fleet: Fleet, load: MessageLoad, *, first_index: int = 0) -> Load:
    """Connect the devices of all pairs; their users are numbered from `first_index`."""
    tally = Tally(load.most * load.pairs)
    pairs = [Pair(target, first_index + index, tally, load) for index in range(load.pairs)]
    streams = await fleet.connect([user for pair in pairs for user in (pair.sender.user_id, pair.recipient.user_id)], DEVICE)
    running = Load(target, fleet, pairs, tally, load)
    for index, pair in enumerate(pairs):
        pair.attach(streams[2 * index], streams[2 * index + 1], running.repair)
        if load.receipts:
            fleet.spawn(pair.keep_acking(), "acks")
    return running


async def measure_messages(target: Target, load: MessageLoad) -> dict[str, Any]:
    """Warm up, measure, wait for the rest, judge; return the figures."""
    async with open_fleet(target.address, target.token_for) as fleet:
        progress(f"{load.pairs} pairs, {load.warm_seconds:g} s of warming up, {load.seconds:g} s of measuring")
        running = await connect_load(target, fleet, load)
        tally = running.tally
        if load.rate:
            offering = fleet.spawn(running.offer(load.warm_seconds + load.seconds), "offer")
        else:
            offering = None
            await running.begin()
        await asyncio.sleep(load.warm_seconds)
        cpu_before = target.meter.cpu_seconds() if target.meter else 0.0
        parts_before = target.meter.cpu_seconds_by_part() if target.meter else {}
        own_before, shown_before = time.process_time(), tally.shown
        tally.begin_window()
        await asyncio.sleep(load.seconds)
        tally.end_window()
        shown, elapsed = tally.shown - shown_before, tally.window_end - tally.window_begin
        cpu = target.meter.cpu_seconds() - cpu_before if target.meter else None
        parts = cpu_by_part(parts_before, target.meter, shown) if target.meter and shown else {}
        own = time.process_time() - own_before
        if not shown:
            raise CommandError("no message arrived in the measured time")
        if offering is not None:
            await offering
        await running.end()
        verdict = await running.verdict()
        result: dict[str, Any] = {
            "pairs": load.pairs,
            "window": None if load.rate else load.window,
            "offered_per_second": load.rate or None,
            "receipts": load.receipts,
            "seconds": round(elapsed, 3),
            "messages_per_second": round(shown / elapsed, 1),
            "server_cpu_us_per_message": None if cpu is None else round(cpu / shown * 1e6, 1),
            **({"server_cpu_us_per_message_by_process": parts} if parts else {}),
            "server_cores": None if cpu is None else round(cpu / elapsed, 3),
            "generator_cpu_us_per_message": round(own / shown * 1e6, 1),
            "latency_ms": percentiles_ms(tally.answer_seconds),
            "delivery_latency_ms": percentiles_ms(tally.delivery_seconds),
        }
        return result | running.stream_counts() | verdict.counts() | {"stories": verdict.stories}
