import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from chassis.tallies import Tallies

BUCKETS = (0.5, 1, 2.5)


@pytest.mark.parametrize("values", [[], [0.5, 0.50001, 1, 2.5, 7, 0, 3]])
def test_a_scrape_sees_what_it_would_of_the_librarys_own(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies(ours)
    counters = [tallies.counter("c_total", "Some."), *tallies.counters("d_total", "More.", "of", ["x", "y"])]
    histograms = [tallies.histogram("h", "Times.", BUCKETS), *tallies.histograms("i", "Others.", "of", ["x", "y"], BUCKETS)]
    counter = Counter("d_total", "More.", ["of"], registry=theirs)
    histogram = Histogram("i", "Others.", ["of"], registry=theirs, buckets=BUCKETS)
    counters += [Counter("c_total", "Some.", registry=theirs), counter.labels("x"), counter.labels("y")]
    histograms += [Histogram("h", "Times.", registry=theirs, buckets=BUCKETS), histogram.labels("x"), histogram.labels("y")]
    for one in counters[:2] + counters[3:5]:
        one.inc()
        one.inc(3)
    for one in histograms[:2] + histograms[3:5]:
        for value in values:
            one.observe(value)

    def exposed(registry: CollectorRegistry) -> list[str]:
        return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)

    assert exposed(ours) == exposed(theirs)
