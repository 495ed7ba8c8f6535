"""The gateway put together: opened in one order, drained in the other."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
import structlog
from prometheus_client import CollectorRegistry

from chassis.backoff import Backoff
from chassis.clock import Clock
from chassis.eventlog import EventLog
from chassis.readiness import Probe
from chassis.registry import Instance, Registry
from chassis.tasks import Tasks, open_tasks
from parley.api.v1.messaging_service_pb2 import DESCRIPTOR, GoAwayReason
from parley.gateway.v1.gateway_service_pb2_grpc import add_GatewayServiceServicer_to_server
from parley_protocol.slots import GATEWAYS
from parley_protocol.topics import COMMANDS
from services.gateway.acks import AckMerger
from services.gateway.checks import DigestChecks
from services.gateway.config import GatewaySettings
from services.gateway.connect import DeviceStreams
from services.gateway.deliver import GatewayRpc
from services.gateway.directory import Directory
from services.gateway.grace import Grace
from services.gateway.inbound import Inbound
from services.gateway.keys import KEY_FILE_NAME, load_or_create_key
from services.gateway.log_writer import LogWriter, start_log_writer
from services.gateway.metrics import Metrics
from services.gateway.ownership import Ownership, open_ownership
from services.gateway.rates import DeviceRates
from services.gateway.slots import Ended, Slots
from services.gateway.streams import Streams
from services.gateway.tokens import KeyRing, KeysFile, TokenVerifier, verifying_key
from services.gateway.unary import Calls, method_handlers

_log = structlog.get_logger()
_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
_SETTLE_TIMES = 2  # its own time to settle, and one that comes after it
_SETTLED_SECONDS = 20.0  # for slots to go from one to the other at their rate
_SWEEPS_PER_LIMIT = 4  # a limit of n seconds is found to be over after at most n * 1.25

CALLERS: Final = frozenset({"router"})  # who calls a gateway's internal port


class Gateway:
    """An open gateway."""

    def __init__(
        self, instance_id: str, settings: GatewaySettings, streams: Streams, acks: AckMerger, writer: LogWriter,
        device_streams: DeviceStreams, calls: Calls, rpc: GatewayRpc, tasks: Tasks, log: EventLog, slots: Slots,
        directory: Directory, clock: Clock, metrics: Metrics, rng: random.Random,
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
        self.slots = slots
        self._directory = directory
        self._clock = clock
        self._metrics = metrics
        self._rng = rng
        self._ownership: Ownership | None = None

    @property
    def session_count(self) -> int:
        """Return how many devices are here."""
        return sum(map(len, self._directory.by_user.values()))

    @asynccontextmanager
    async def own_slots(self, registry: Registry, *, address: str, public_address: str = "") -> AsyncIterator[None]:
        """Be in the registry, with where other services and devices find this gateway, and own slots, until the block is left.

        A gateway that is alone with its registry owns all of them when the block begins; others come to theirs later.
        """
        self.slots.public_address = public_address
        instance = Instance(GATEWAYS, self.instance_id, address, public_address)
        ownership = Ownership(
            self.slots, registry, instance, self.end_slots, clock=self._clock, metrics=self._metrics, rng=self._rng
        )
        async with open_ownership(ownership):
            if self.slots.alone:
                await ownership.wait_until(lambda: self.slots.is_whole)
            self._ownership = ownership
            try:
                yield
            finally:
                self._ownership = None

    async def wait_settled(self) -> None:
        """Wait until each user has a gateway and this one all of those that it should have, but no longer than that takes.

        Whoever says `ready` earlier sends devices about.
        """
        assert self._ownership is not None
        try:
            async with asyncio.timeout(_SETTLE_TIMES * self._settings.slot_settle_seconds + _SETTLED_SECONDS):
                await self._ownership.wait_settled()
        except TimeoutError:  # the registry is away, or others are: devices are served all the same
            _log.warning("gateway.not_settled", slots=len(self.slots.epochs))

    def end_slots(self, ended: Sequence[Ended]) -> None:
        """Send the devices of slots to whom they belong now."""
        self._metrics.slots_ended.inc(len(ended))
        addresses = {one.slot: one.address for one in ended}
        if self.slots.draining:
            reason, detail = GoAwayReason.GO_AWAY_REASON_DRAINING, "the server stops, another one serves this user"
        else:
            reason, detail = GoAwayReason.GO_AWAY_REASON_MOVED, "another gateway serves this user now"
        slot_of = self.slots.slot_of
        for user_id, sessions in self._directory.by_user.items():
            address = addresses.get(slot_of(user_id))
            if address is not None:
                for session in sessions:
                    session.say_goodbye(reason, detail, address)

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
        """Hand over slots, with their devices, if there is another gateway (within `handover_seconds`); then let no stream begin,
        say goodbye to all, and put what was taken into the log; each within `drain_seconds`.

        What an unavailable log does not take by then was acked to nobody.
        """
        if self._ownership is not None:
            try:
                async with asyncio.timeout(self._settings.handover_seconds):
                    await self._ownership.drain()
            except TimeoutError:
                _log.warning("gateway.drained_with_slots", slots=len(self.slots.epochs))  # others take them once we are gone
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
    alone: bool = False,
) -> AsyncIterator[Gateway]:
    """Open a gateway; leaving ends its loops at once, so `drain` first. It serves no device before it owns slots (`own_slots`).

    `alone`: no other gateway is, or ever was, in the registry that it will be in.
    """
    instance_id = settings.instance_id or f"gateway-{rng.getrandbits(48):012x}"
    counted = Metrics(metrics)
    streams, directory = Streams(settings, counted), Directory()
    slots = Slots(
        instance_id,
        settings.slot_count,
        settle_seconds=settings.slot_settle_seconds,
        slots_per_second=settings.slots_per_second,
        alone=alone,
    )
    rates = DeviceRates(settings.commands_per_second, settings.commands_burst)
    async with open_tasks("gateway") as tasks, open_tasks("gateway.streams") as stream_tasks:
        writer = await start_log_writer(log, COMMANDS, tasks, clock=clock, rng=rng, metrics=counted)
        acks = AckMerger(writer, counted)
        checks = DigestChecks(settings, slots, store_channel, clock, counted, rng)
        tasks.spawn(checks.run(), name="checks")
        inbound = Inbound(writer, acks, rates, checks, counted, settings.commands_per_frame)
        device_streams = DeviceStreams(
            settings, instance_id, verifier=verifier, streams=streams, directory=directory, slots=slots, inbound=inbound,
            checks=checks,
            tasks=stream_tasks, clock=clock, metrics=counted, rng=rng,
        )  # fmt: skip
        calls = Calls(
            settings, instance_id, verifier=verifier, streams=streams, directory=directory, slots=slots, writer=writer, rates=rates,
            store_channel=store_channel, router_channel=router_channel, clock=clock, metrics=counted, rng=rng,
        )  # fmt: skip
        tasks.spawn(_sweep(settings, streams, writer, verifier, rates, checks, clock), name="sweep")
        backoff = Backoff(_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, rng)
        grace = Grace(slots, directory, log, settings.offline_grace_seconds, clock, backoff)
        tasks.spawn(grace.run(), name="grace")
        rpc = GatewayRpc(directory, slots, grace, lambda ended: gateway.end_slots(ended), counted)
        gateway = Gateway(
            instance_id,
            settings,
            streams,
            acks,
            writer,
            device_streams,
            calls,
            rpc,
            tasks,
            log,
            slots,
            directory,
            clock,
            counted,
            rng,
        )
        try:
            yield gateway
        finally:
            rpc.close()
            acks.close()


async def _sweep(
    settings: GatewaySettings,
    streams: Streams,
    writer: LogWriter,
    verifier: TokenVerifier,
    rates: DeviceRates,
    checks: DigestChecks,
    clock: Clock,
) -> None:
    interval = min(settings.heartbeat_seconds, settings.hello_seconds, settings.write_seconds) / _SWEEPS_PER_LIMIT
    while True:
        await asyncio.sleep(interval)
        verifier.refresh()
        rates.forget_full(clock.monotonic())
        writer.close_stalled(clock.monotonic())
        await streams.sweep(clock.monotonic(), clock.wall_ms(), checks.ask)


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
