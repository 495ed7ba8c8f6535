"""The store's settings."""

from dataclasses import dataclass

from services.store.rows import BUCKET_BITS


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How a store worker spends memory. Nothing here changes what is decided."""

    poll_records: int = 500  # a batch: enough to share one commit, few enough to answer within milliseconds
    bucket_bits: int = BUCKET_BITS  # fixed for a cluster's life: it says where events lie
    max_conversations: int = 20_000  # states kept a partition, ~3 kB each for a 1-1
    recent_bytes: int = 64 * 1024 * 1024  # newest events kept for readers
    publish_bytes: int = 512 * 1024  # an events record at most, below Kafka's default limit of 1 MB
    retry_min_seconds: float = 0.05
    retry_max_seconds: float = 2.0
