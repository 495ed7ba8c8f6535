"""What a CQL timeline counts."""

from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Kind(Enum):
    """What a statement does."""

    WRITE = "write"
    POINTS = "points"
    PARTITIONS = "partitions"
    RANGE = "range"


class Failure(Enum):
    """Why a statement failed."""

    UNREACHABLE = "unreachable"  # no node takes it
    TIMEOUT = "timeout"  # no answer in time, from a node or of a node's replicas
    UNAVAILABLE = "unavailable"  # too few replicas are up
    OVERLOADED = "overloaded"
    REFUSED = "refused"  # the engine failed it or found fault with it: disk full, a table dropped, a right withdrawn


class CqlMetrics:
    """The metrics of one session, children bound once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        seconds = Histogram(
            "parley_timeline_statement_seconds",
            "Time from sending a statement to its answer, by what it does.",
            ["kind"],
            registry=registry,
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
        )
        self.seconds = {kind: seconds.labels(kind.value) for kind in Kind}
        rows = Counter(
            "parley_timeline_rows_total", "Rows written, and rows that reads returned.", ["direction"], registry=registry
        )
        self.rows_written, self.rows_read = rows.labels("written"), rows.labels("read")
        self.in_flight = Gauge("parley_timeline_in_flight", "Statements that wait for their answer.", registry=registry)
        errors = Counter("parley_timeline_errors_total", "Statements that failed, by why.", ["why"], registry=registry)
        self.errors = {failure: errors.labels(failure.value) for failure in Failure}
        self.engine = Gauge(
            "parley_timeline_engine_info", "1 for the engine that the tables lie in.", ["engine", "version"], registry=registry
        )
