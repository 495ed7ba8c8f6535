"""The router's settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Bounds and patience."""

    poll_records: int = 64  # event batches at once; each holds up to a poll of the store
    frame_bytes: int = 1024 * 1024  # a frame to a gateway at most
    unreachable_seconds: float = 10.0  # a gateway silent for this long: its users' messages go to parley.offline
    question_seconds: float = 5.0  # deadline of calls to stores and gateways
    cached_groups: int = 10_000  # groups over the named-recipients bound, ~50 kB each at 500 members
    retry_min_seconds: float = 0.05
    retry_max_seconds: float = 2.0
