"""A router as a process of its own. What is opened last is drained first."""

from pathlib import Path

from chassis.compiled import serve_compiled

if __name__ == "__main__":  # before anything that may be compiled is imported
    serve_compiled(Path(__file__).parents[2])

from chassis import engines
from chassis.eventlog import LogSetupError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.first_of import first_of
from chassis.peers import open_peers
from chassis.registration import open_registration
from chassis.registry import Instance
from chassis.service import Host, run_service
from parley_protocol.topics import topics
from services.router.app import CALLERS, open_router
from services.router.config import RouterSettings


async def serve(host: Host) -> None:
    """Route events until told to stop; a batch under way is routed again by the next router."""
    settings = host.settings[RouterSettings]
    async with (
        engines.event_log(host, topics(host.settings[KafkaSettings].partitions)) as log,
        engines.registry(host, log) as registry,
        open_peers(registry, "store", host.channel_to, host.clock) as stores,
        open_router(
            settings, log=log, registry=registry, store_channel=stores, open_gateway_channel=host.channel_to, clock=host.clock,
            metrics=host.metrics, rng=host.rng,
        ) as router,
        host.internal_server(router.register, CALLERS) as server,
        open_registration(registry, Instance("router", host.name(settings.instance_id), host.advertised(server)), host.rng),
    ):  # fmt: skip
        failed = first_of(router.wait_failed(), registry.claims.wait_refused())
        await host.serve(server.address, failed, {**router.probes, "stores": stores.ping})


def main() -> None:
    """Run it; ends the process."""
    run_service("router", (*engines.LOG_AND_REGISTRY, RouterSettings), serve, unusable=[LogSetupError])


if __name__ == "__main__":
    main()
