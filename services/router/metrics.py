"""What the router counts."""

from prometheus_client import CollectorRegistry, Counter

from chassis.tallies import Tallies


class RouterMetrics:
    """The router's metrics, children bound once."""

    def __init__(self, registry: CollectorRegistry) -> None:
        tallies = Tallies(registry)
        self.events = tallies.counter("parley_router_events_total", "Events routed.")
        self.deliveries = tallies.counter("parley_router_deliveries_total", "Deliveries to users, sent to their gateways.")
        self.offline = Counter(
            "parley_router_offline_total", "Users named to parley.offline, once for each message.", registry=registry
        )
        self.link_failures = Counter("parley_router_link_failures_total", "Streams to gateways that broke.", registry=registry)
        self.refused = Counter(
            "parley_router_refused_slots_total", "Slots that a gateway refused, as not its own.", registry=registry
        )
        self.retries = Counter("parley_router_batch_retries_total", "Batches given back after a failure.", registry=registry)
        self.unreadable = Counter(
            "parley_router_unreadable_total", "Records of events that could not be parsed, and were passed over.", registry=registry
        )
        self.lag_seconds = tallies.histogram(
            "parley_router_lag_seconds",
            "From the event's append to the gateway's answer.",
            (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
        )
