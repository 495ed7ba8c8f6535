"""What a gateway counts. Labels have few values; children are bound once, because a lookup costs as much as a small frame."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from chassis.tallies import Tallies
from parley.api.v1.messaging_service_pb2 import GoAwayReason

_APPEND_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)  # one fsync to a failing engine


_COUNTS: Final = {
    "frames_in": "Frames from devices.",
    "frames_out": "Frames to devices.",
    "commands_taken": "Commands that went to the log.",
    "acks_taken": "Watermarks from devices that went to the log, before they were merged.",
    "deliveries": "Deliveries from routers.",
}


class Counts(Collector):
    """What is counted for every frame or message: plain numbers, read at a scrape. A Counter costs ~0.5 us a time."""

    __slots__ = tuple(_COUNTS)

    def __init__(self) -> None:
        self.frames_in = self.frames_out = self.commands_taken = self.acks_taken = self.deliveries = 0

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the present numbers."""
        for name, text in _COUNTS.items():
            yield CounterMetricFamily(f"parley_gateway_{name}", text, value=getattr(self, name))


class Metrics:
    """The gateway's metrics, in the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counts = Counts()
        registry.register(self.counts)
        tallies = Tallies(registry)
        self.sessions = Gauge("parley_gateway_sessions", "Device streams that said Hello.", registry=registry)
        self.streams = Gauge("parley_gateway_streams", "Device streams, those before Hello included.", registry=registry)
        self.abandoned_calls = Gauge(
            "parley_gateway_abandoned_calls",
            "Ended calls whose client has not taken the end, and so hold memory.",
            registry=registry,
        )
        self.outbox_bytes = Gauge(
            "parley_gateway_outbox_bytes", "Bytes that wait for devices, at the last sweep.", registry=registry
        )
        commands = Counter(
            "parley_gateway_commands_refused", "Commands that did not go to the log, by why.", ["reason"], registry=registry
        )
        self.commands_rejected = commands.labels("rejected")
        self.commands_held = commands.labels("held")
        self.commands_rate_limited = commands.labels("rate_limited")
        self.commands_overloaded = commands.labels("overloaded")
        self.acks_dropped = Counter("parley_gateway_acks_dropped", "Watermarks shed: devices ack again.", registry=registry)
        self.ack_records = tallies.counter("parley_gateway_ack_records_total", "Records that merged watermarks became.")
        self.bad_frames = Counter("parley_gateway_bad_frames", "Frames that were refused as a whole.", registry=registry)
        goaways = Counter("parley_gateway_goaways", "Goodbyes by reason.", ["reason"], registry=registry)
        self.goaways = {
            number: goaways.labels(name.removeprefix("GO_AWAY_REASON_").lower()) for name, number in GoAwayReason.items() if number
        }
        self.cut_streams = Counter("parley_gateway_cut_streams", "Streams ended because a write was stuck.", registry=registry)
        self.append_seconds = tallies.histogram(
            "parley_gateway_append_seconds", "Time of one append to the command log.", _APPEND_SECONDS
        )
        self.append_failures = Counter(
            "parley_gateway_append_failures", "Appends of which the outcome is unknown.", registry=registry
        )
        self.closed_partitions = Gauge(
            "parley_gateway_closed_partitions", "Partitions that take no commands now.", registry=registry
        )
        self.unreached = Counter("parley_gateway_unreached", "Users reported as not reached.", registry=registry)
        self.slots = Gauge("parley_gateway_slots", "Slots of users that are served here.", registry=registry)
        self.slots_ended = Counter("parley_gateway_slots_ended", "Slots that went to another gateway.", registry=registry)
        self.refused_slots = Counter(
            "parley_gateway_refused_slots", "Slots in deliveries that were not here, or under another epoch.", registry=registry
        )
        self.digests_differed = Counter(
            "parley_gateway_digests_differed", "Devices told to Sync: something was missing.", registry=registry
        )
        self.waiting_submits = Gauge(
            "parley_gateway_waiting_submits", "Submit calls that wait for their outcome.", registry=registry
        )
