"""A gateway as a process of its own. What is opened last is drained first."""

from pathlib import Path

from chassis.compiled import serve_compiled

if __name__ == "__main__":  # before anything that may be compiled is imported
    serve_compiled(Path(__file__).parents[2])

from chassis import engines
from chassis.eventlog import LogSetupError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.first_of import first_of
from chassis.peers import open_peers
from chassis.server import open_server
from chassis.service import Host, run_service
from parley_protocol.topics import topics
from services.gateway.app import CALLERS, open_gateway, open_verifier
from services.gateway.config import GatewaySettings
from services.gateway.keys import KeyFileError
from services.gateway.tokens import KeysFileError


async def serve(host: Host) -> None:
    """Serve devices until told to stop; then let no stream begin, say goodbye to all, and put what was taken into the log."""
    settings = host.settings[GatewaySettings]
    verifier = open_verifier(settings, None, host.clock)
    async with (
        engines.event_log(host, topics(host.settings[KafkaSettings].partitions)) as log,
        engines.registry(host, log) as registry,
        open_peers(registry, "store", host.channel_to, host.clock) as stores,
        open_peers(registry, "router", host.channel_to, host.clock) as routers,
        open_gateway(
            settings, log=log, store_channel=stores, router_channel=routers, verifier=verifier, clock=host.clock,
            metrics=host.metrics, rng=host.rng,
        ) as gateway,
        host.internal_server(gateway.register_internal, CALLERS) as internal,
        open_server(
            bind=settings.listen, register=gateway.register_public, tls=settings.tls(), readiness=host.readiness,
            max_receive_bytes=settings.frame_bytes,
        ) as public,
        gateway.own_slots(registry, address=host.advertised(internal), public_address=settings.advertised(public.address)),
    ):  # fmt: skip
        try:
            await first_of(gateway.wait_settled(), registry.claims.wait_refused())
            probes = {**gateway.probes, "stores": stores.ping}
            failed = first_of(gateway.wait_failed(), registry.claims.wait_refused())
            await host.serve(public.address, failed, probes, internal=internal.address)
        finally:
            await gateway.drain()


def main() -> None:
    """Run it; ends the process."""
    run_service(
        "gateway", (*engines.LOG_AND_REGISTRY, GatewaySettings), serve, unusable=(KeyFileError, KeysFileError, LogSetupError)
    )


if __name__ == "__main__":
    main()
