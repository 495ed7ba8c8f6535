"""Counters and histograms that one event loop writes and a scrape reads: plain numbers.

prometheus_client's own take a lock for each number, so that any thread may count: at ten observations a batch that was a twentieth
of what a small batch costs.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Tally:
    """A number that grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count."""
        self.value += amount


class Spread:
    """How often values lay at or below each of some bounds, ascending, and their sum."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Take a value in."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Give the present numbers to a scrape."""
        below = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), below))
        family.add_metric(labels, buckets, self._total)


class Tallies(Collector):
    """The tallies and spreads of one service, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counters: list[tuple[str, str, str, dict[str, Tally]]] = []
        self._histograms: list[tuple[str, str, str, dict[str, Spread]]] = []
        registry.register(self)

    def counter(self, name: str, text: str) -> Tally:
        """Make a counter."""
        return self.counters(name, text, "", ("",))[0]

    def counters(self, name: str, text: str, label: str, values: Sequence[str]) -> list[Tally]:
        """Make the counters of one label's values."""
        tallies = [Tally() for _ in values]
        self._counters.append((name, text, label, dict(zip(values, tallies, strict=True))))
        return tallies

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Spread:
        """Make a histogram."""
        return self.histograms(name, text, "", ("",), buckets)[0]

    def histograms(self, name: str, text: str, label: str, values: Sequence[str], buckets: Sequence[float]) -> list[Spread]:
        """Make the histograms of one label's values."""
        spreads = [Spread(buckets) for _ in values]
        self._histograms.append((name, text, label, dict(zip(values, spreads, strict=True))))
        return spreads

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """Yield the present numbers."""
        for name, text, label, tallies in self._counters:
            counter = CounterMetricFamily(name, text, labels=[label] if label else [])
            for value, tally in tallies.items():
                counter.add_metric([value] if label else [], tally.value)
            yield counter
        for name, text, label, spreads in self._histograms:
            histogram = HistogramMetricFamily(name, text, labels=[label] if label else [])
            for value, spread in spreads.items():
                spread.add_to(histogram, [value] if label else [])
            yield histogram
