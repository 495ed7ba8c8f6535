"""The gateway put together: opened in one order, drained in the other."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import structlog
from prometheus_client import CollectorRegistry

from chassis.clock import Clock
from chassis.eventlog import EventLog
from chassis.readiness import Probe
from chassis.tasks import Tasks, open_tasks
from parley.api.v1.messaging_service_pb2 import DESCRIPTOR
from parley.gateway.v1.gateway_service_pb2_grpc import add_GatewayServiceServicer_to_server
from parley_protocol.topics import COMMANDS
from services.gateway.acks import AckMerger
from services.gateway.config import GatewaySettings
from services.gateway.connect import DeviceStreams
from services.gateway.deliver import GatewayRpc
from services.gateway.directory import Directory
from services.gateway.inbound import Inbound
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key
from services.gateway.log_writer import LogWriter, start_log_writer
from services.gateway.metrics import Metrics
from services.gateway.rates import DeviceRates
from services.gateway.streams import Streams
from services.gateway.tokens import KeyRing, KeysFile, TokenVerifier, verifying_key
from services.gateway.unary import Calls, method_handlers

_log = structlog.get_logger()
_SWEEPS_PER_LIMIT = 4  # a limit of n seconds is found to be over after at most n * 1.25


class Gateway:
    """An open gateway."""

    def __init__(
        self, instance_id: str, settings: GatewaySettings, streams: Streams, acks: AckMerger, writer: LogWriter,
        device_streams: DeviceStreams, calls: Calls, rpc: GatewayRpc, tasks: Tasks, log: EventLog,
    ) -> None:  # fmt: skip
        self.probes: Mapping[str, Probe] = {"log": log.ping}  # what a gateway can't work without
        self.instance_id = instance_id
        self._settings = settings
        self._streams = streams
        self._acks = acks
        self._writer = writer
        self._device_streams = device_streams
        self._calls = calls
        self._rpc = rpc
        self._tasks = tasks

    def register_public(self, server: grpc.aio.Server) -> None:
        """Serve devices, bots and back ends. Frames of Connect are read and written as bytes."""
        connect: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._device_streams.connect)
        service = DESCRIPTOR.services_by_name["MessagingService"].full_name
        handlers = {"Connect": connect, **method_handlers(self._calls)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def register_internal(self, server: grpc.aio.Server) -> None:
        """Serve routers."""
        add_GatewayServiceServicer_to_server(self._rpc, server)

    async def wait_failed(self) -> None:
        """Wait until a loop of the gateway fails, and raise why: then the process can't serve on."""
        await self._tasks.wait_failed()

    async def drain(self) -> None:
        """Let no stream begin, say goodbye to all, and put what was taken into the log; each within `drain_seconds`.

        What an unavailable log does not take by then was acked to nobody.
        """
        await self._streams.drain()
        self._acks.flush()
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._writer.wait_idle()
        except TimeoutError:
            _log.warning("gateway.drained_with_pending_commands")  # acked to nobody: their devices send them again


@asynccontextmanager
async def open_gateway(
    settings: GatewaySettings,
    *,
    log: EventLog,
    store_channel: grpc.aio.Channel,
    router_channel: grpc.aio.Channel,
    verifier: TokenVerifier,
    clock: Clock,
    metrics: CollectorRegistry,
    rng: random.Random,
) -> AsyncIterator[Gateway]:
    """Open a gateway; leaving ends its loops at once, so `drain` first."""
    instance_id = settings.instance_id or f"gateway-{rng.getrandbits(48):012x}"
    counted = Metrics(metrics)
    streams, directory = Streams(settings, counted), Directory()
    rates = DeviceRates(settings.commands_per_second, settings.commands_burst)
    async with open_tasks("gateway") as tasks, open_tasks("gateway.streams") as stream_tasks:
        writer = await start_log_writer(log, COMMANDS, tasks, clock=clock, rng=rng, metrics=counted)
        acks = AckMerger(writer, counted)
        inbound = Inbound(writer, acks, rates, counted, settings.commands_per_frame)
        device_streams = DeviceStreams(
            settings, instance_id, verifier=verifier, streams=streams, directory=directory, inbound=inbound, tasks=stream_tasks,
            clock=clock, metrics=counted, rng=rng,
        )  # fmt: skip
        calls = Calls(
            settings, instance_id, verifier=verifier, streams=streams, directory=directory, writer=writer, rates=rates,
            store_channel=store_channel, router_channel=router_channel, clock=clock, metrics=counted, rng=rng,
        )  # fmt: skip
        tasks.spawn(_sweep(settings, streams, writer, verifier, clock), name="sweep")
        rpc = GatewayRpc(directory, counted)
        try:
            yield Gateway(instance_id, settings, streams, acks, writer, device_streams, calls, rpc, tasks, log)
        finally:
            rpc.close()
            acks.close()


async def _sweep(settings: GatewaySettings, streams: Streams, writer: LogWriter, verifier: TokenVerifier, clock: Clock) -> None:
    interval = min(settings.heartbeat_seconds, settings.hello_seconds, settings.write_seconds) / _SWEEPS_PER_LIMIT
    while True:
        await asyncio.sleep(interval)
        verifier.refresh()
        writer.close_stalled(clock.monotonic())
        await streams.sweep(clock.monotonic(), clock.wall_ms())


def open_verifier(settings: GatewaySettings, data_dir: Path | None, clock: Clock) -> TokenVerifier:
    """Read the configured keys, or the development key of the data folder, made if it is not there.

    Raises KeysFileError or KeyFileError, each saying which file and why.
    """
    if settings.token_keys_file is not None:
        keys = KeysFile(settings.token_keys_file)
        return TokenVerifier(keys.ring, clock, audience=settings.token_audience, issuer=settings.token_issuer, changed=keys.changed)
    if data_dir is None:
        raise ValueError("without token_keys_file a data folder is needed for the development key")
    key = verifying_key(load_or_create_key(data_dir / KEY_FILE_NAME).public_key())
    assert key is not None
    return TokenVerifier(KeyRing({"": key}), clock, development=True)
