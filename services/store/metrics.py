"""What the store counts."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from chassis.tallies import Tallies

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)


class StoreMetrics:
    """The store's metrics, children bound once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tallies = Tallies(registry)
        self.accepted, self.acked, self.answered_again, self.rejected, self.without_effect, self.dead_lettered = tallies.counters(
            "parley_store_records_total",
            "Records decided, by what became of them.",
            "result",
            ("accepted", "ack", "answered_again", "rejected", "without_effect", "dead_lettered"),
        )
        self.load, self.decide, self.rows, self.states, self.publish = tallies.histograms(
            "parley_store_phase_seconds",
            "Time of a batch in each phase.",
            "phase",
            ("load", "decide", "rows", "states", "publish"),
            _SECONDS,
        )
        self.batch_records = tallies.histogram(
            "parley_store_batch_records", "Records in a batch.", (1, 2, 5, 10, 20, 50, 100, 200, 500)
        )
        self.retries = Counter("parley_store_batch_retries_total", "Batches given back after an engine failed.", registry=registry)
        self.stopped = Gauge(
            "parley_store_partition_stopped",
            "1 where a partition stopped and needs a person: the log names the record.",
            ["partition"],
            registry=registry,
        )
        reads = tallies.histograms(
            "parley_store_read_seconds",
            "Time of reads, by RPC.",
            "rpc",
            ("Sync", "ListEvents", "GetConversation", "ListMembers", "ListRecipients", "GetDigests"),
            _SECONDS,
        )
        self.sync, self.list_events, self.get_conversation, self.list_members, self.list_recipients, self.get_digests = reads
