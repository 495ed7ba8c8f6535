"""What the store counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class StoreMetrics:
    """The store's metrics, children bound once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        records = Counter("parley_store_records_total", "Records decided, by what became of them.", ["result"], registry=registry)
        self.accepted = records.labels("accepted")
        self.acked = records.labels("ack")
        self.answered_again = records.labels("answered_again")
        self.rejected = records.labels("rejected")
        self.without_effect = records.labels("without_effect")
        self.dead_lettered = records.labels("dead_lettered")
        phases = Histogram(
            "parley_store_phase_seconds",
            "Time of a batch in each phase.",
            ["phase"],
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
        )
        self.load, self.decide, self.rows, self.states, self.publish = map(
            phases.labels, ("load", "decide", "rows", "states", "publish")
        )
        self.batch_records = Histogram(
            "parley_store_batch_records", "Records in a batch.", registry=registry, buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
        )
        self.retries = Counter("parley_store_batch_retries_total", "Batches given back after an engine failed.", registry=registry)
        self.stopped = Gauge(
            "parley_store_partition_stopped",
            "1 where a partition stopped and needs a person: the log names the record.",
            ["partition"],
            registry=registry,
        )
        self.reads = Histogram(
            "parley_store_read_seconds",
            "Time of reads, by RPC.",
            ["rpc"],
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
        )
