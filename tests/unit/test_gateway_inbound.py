"""What a frame's commands cost, and in which order they get through."""

from prometheus_client import CollectorRegistry

from chassis.errors import reason_of
from parley.api.v1.commands_pb2 import Outcome, SendMessage
from parley.api.v1.messaging_service_pb2 import ConnectResponse, Digest, Heartbeat
from parley.gateway.v1.frames_pb2 import RawDeviceBatch
from parley.log.v1.records_pb2 import CommandRecord, RawCommand
from services.gateway.acks import AckMerger
from services.gateway.inbound import Inbound
from services.gateway.metrics import Metrics
from services.gateway.rates import DeviceRates
from services.gateway.records import origin_fields
from services.gateway.session import Session
from services.gateway.tokens import Claims

GROUP = "g_" + "a" * 26


class OpenLane:
    """A partition of the log that takes everything."""

    crowded = False

    def __init__(self) -> None:
        self.taken: list[int] = []

    def lane_of(self, key: bytes) -> "OpenLane":
        return self

    def offer(self, key: bytes, record: bytes) -> float:
        self.taken.append(int.from_bytes(CommandRecord.FromString(record).command.request_id, "big"))
        return 0.0


class Digests:
    """What devices say that they hold."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_digest(self, session: Session, digest: int) -> None:
        self.taken.append(digest)


class Stream:
    """One device's stream on a gateway that takes one command a second."""

    def __init__(self, burst: int = 1) -> None:
        self.lane = OpenLane()
        metrics = Metrics(CollectorRegistry())
        acks = AckMerger(self.lane, metrics)  # type: ignore[arg-type]
        self.digests = Digests()
        self._inbound = Inbound(self.lane, acks, DeviceRates(1.0, burst), self.digests, metrics, 100)  # type: ignore[arg-type]
        self.session = Session(Claims("alice", "phone", 0), 0.0, 10_000, 10_000_000)
        self.session.device_id = "phone"
        self.session.origin = origin_fields(user_id="alice", device_id="phone", gateway_id="g", session_id="s", member_cap=9)

    def send(self, number: int, now: float, body: bytes = b"x", count: int = 1) -> float:
        """Send commands with numbers from `number` on; return how long the gateway does not read on."""
        payload = SendMessage(body=body).SerializeToString()
        commands = [
            RawCommand(request_id=n.to_bytes(16, "big"), conversation_id=GROUP, send_message=payload)
            for n in range(number, number + count)
        ]
        batch = RawDeviceBatch(first_command_number=number, commands=commands)
        return self._inbound.take(self.session, batch, now, batch.ByteSize()).pause_seconds

    def say(self, batch: RawDeviceBatch) -> None:
        """Send a batch without commands."""
        self._inbound.take(self.session, batch, 0.0, batch.ByteSize())

    def outcomes(self) -> list[Outcome]:
        found: list[Outcome] = []
        while (frame := self.session.take_frame()) is not None:
            found.extend(ConnectResponse.FromString(frame).batch.outcomes)
        return found


async def test_a_held_command_does_not_take_the_token_that_the_one_it_waits_for_needs():
    """Else two that are resent can keep each other out for ever."""
    stream = Stream()
    stream.send(1, 0.0)
    stream.send(2, 0.1)
    assert reason_of(stream.outcomes()[0].retry.reason) == "RATE_LIMITED"
    for turn in range(1, 5):
        stream.send(3, float(turn))  # read at the very moment at which there is a token
        stream.send(2, turn + 0.01)
    assert stream.lane.taken[:2] == [1, 2]


async def test_held_and_invalid_commands_in_flood_are_read_slowly():
    """They cost no token, and still a device can not have any number of them looked at."""
    for body in (b"x", b""):
        stream = Stream()
        stream.send(1, 0.0)
        now = stream.send(2, 0.0)
        for frame in range(100):
            now += stream.send(3 + 100 * frame, now, body, count=100)
            assert now > 0 or frame < 40
        assert now > 2.0
        assert stream.lane.taken == [1]


async def test_a_frame_within_the_rate_is_taken_whole_and_one_beyond_it_in_part():
    stream = Stream(burst=5)
    assert stream.send(1, 0.0, count=3) == 0.0
    assert stream.send(4, 0.0, count=4) > 0.0
    assert stream.lane.taken == [1, 2, 3, 4, 5]
    assert [outcome.retry.number for outcome in stream.outcomes()] == [6, 6]
    stream.send(6, 1.0)
    assert stream.lane.taken == [1, 2, 3, 4, 5, 6]


async def test_large_frames_pass_in_a_burst_and_are_then_read_slowly():
    """Whatever the rate of commands: 4 MB at once, 1 MB a second."""
    stream = Stream(burst=10_000)
    now = 0.0
    pauses: list[float] = []
    while now < 10.0:
        pauses.append(stream.send(1 + 10 * len(pauses), now, bytes(10_000), count=10))
        now += pauses[-1] + 1e-6  # no timer is exact
    assert not any(pauses[:40])
    assert len(pauses) < 250, "1 MB a second; what was read while there was no token is not paid for, at worst every other frame"
    assert not stream.outcomes(), "all of it was taken"


async def test_a_digest_beside_a_heartbeat_is_taken_and_the_heartbeat_answered():
    stream = Stream()
    stream.say(RawDeviceBatch(heartbeat=Heartbeat(), digest=Digest(value=7)))
    frame = stream.session.take_frame()
    assert frame is not None
    assert ConnectResponse.FromString(frame).batch.HasField("heartbeat")
    assert stream.digests.taken == [7]
