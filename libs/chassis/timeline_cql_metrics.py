"""What a CQL timeline counts."""

from enum import Enum
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from chassis.tallies import Tallies

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)


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
    """The metrics of one session, written by its loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tallies = Tallies(registry)
        text = "Time from sending a statement to its answer, by what it does."
        spreads = tallies.histograms("parley_timeline_statement_seconds", text, "kind", [kind.value for kind in Kind], _SECONDS)
        self.seconds = dict(zip(Kind, spreads, strict=True))
        text = "Rows written, and rows that reads returned."
        self.rows_written, self.rows_read = tallies.counters("parley_timeline_rows_total", text, "direction", ("written", "read"))
        text = "Statements that failed, by why."
        counters = tallies.counters("parley_timeline_errors_total", text, "why", [failure.value for failure in Failure])
        self.errors = dict(zip(Failure, counters, strict=True))
        self.under_way = 0
        in_flight = Gauge("parley_timeline_in_flight", "Statements that wait for their answer.", registry=registry)
        in_flight.set_function(lambda: self.under_way)
        text = "1 for the engine that the tables lie in."
        self.engine = Gauge("parley_timeline_engine_info", text, ["engine", "version"], registry=registry)
