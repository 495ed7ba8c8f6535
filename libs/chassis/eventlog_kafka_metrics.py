"""What is counted about Kafka."""

from prometheus_client import CollectorRegistry, Counter


class KafkaMetrics:
    """The metrics of one process's log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        rebuilds = Counter("parley_kafka_rebuilds_total", "Clients thrown away and made again.", ["client"], registry=registry)
        self.producer_rebuilds = rebuilds.labels("producer")
        self.consumer_rebuilds = rebuilds.labels("consumer")
        self.commit_failures = Counter(
            "parley_kafka_commit_failures_total", "Commits of offsets that failed, to be repeated.", registry=registry
        )
        self.lost_records = Counter(
            "parley_kafka_lost_records_total", "Records that retention removed before they were consumed.", registry=registry
        )
