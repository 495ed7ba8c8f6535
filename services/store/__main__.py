"""A store as a process of its own. What is opened last is drained first."""

from pathlib import Path

from chassis.compiled import serve_compiled

if __name__ == "__main__":  # before anything that may be compiled is imported
    serve_compiled(Path(__file__).parents[2])

from chassis import engines
from chassis.eventlog import LogSetupError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.first_of import first_of
from chassis.registration import open_registration
from chassis.registry import Instance
from chassis.service import Host, run_service
from chassis.timeline import TimelineSetupError
from parley_protocol.topics import topics
from services.store.app import CALLERS, open_store
from services.store.config import StoreSettings
from services.store.rows import TABLES
from services.store.schema import SCHEMA


async def serve(host: Host) -> None:
    """Apply the log and answer reads until told to stop; a batch under way is applied again by the next store."""
    settings = host.settings[StoreSettings]
    async with (
        engines.event_log(host, topics(host.settings[KafkaSettings].partitions)) as log,
        engines.timeline(host, TABLES, len(SCHEMA)) as timeline,
        engines.registry(host, log, timeline) as registry,
        open_store(
            settings, log=log, timeline=timeline, clock=host.clock, metrics=host.metrics, rng=host.rng
        ) as store,
        host.internal_server(store.register, CALLERS) as server,
        open_registration(registry, Instance("store", host.name(settings.instance_id), host.advertised(server)), host.rng),
    ):  # fmt: skip
        failed = first_of(store.wait_failed(), timeline.wait_superseded(), registry.claims.wait_refused())
        await host.serve(server.address, failed, store.probes)


def main() -> None:
    """Run it; ends the process."""
    run_service("store", (*engines.ALL_ENGINES, StoreSettings), serve, unusable=(LogSetupError, TimelineSetupError))


if __name__ == "__main__":
    main()
