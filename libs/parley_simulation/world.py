"""The whole system in one process: engines, stores, router and gateways joined in memory, and devices that use the SDK."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from chassis.eventlog import LogRecord
from chassis.first_of import first_of
from chassis.inprocess import InProcessServer
from chassis.registry import Instance
from chassis.testing.faults import AWAY, CUT_OFF, DRAIN, PAUSE_SECONDS_MAX, REGISTRY_FAULTS, SLOW_READER
from chassis.testing.virtual_loop import run_virtual
from parley.log.v1.records_pb2 import CommandRecord, EventBatch
from parley_checker.guarantees import Guarantee
from parley_checker.history import Device, entry_of
from parley_checker.judge import judge
from parley_checker.verdict import Fault, Verdict
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS, OFFLINE
from parley_simulation.bots import Bot
from parley_simulation.devices import CALM, Crowd, SimulatedDevice
from parley_simulation.epoch_fact import FACTS, wait_superseded
from parley_simulation.network import Endpoint
from parley_simulation.ownership_judge import OwnershipJudge
from parley_simulation.plan import Plan, Scene
from parley_simulation.processes import (
    BrokenError,
    ContractError,
    Incarnation,
    Simulation,
    hash_of,
    open_fresh_timeline,
    open_simulation,
)
from parley_simulation.reports import Report
from parley_simulation.store_judge import judge_published, judge_replay, judge_rows, timelines_of
from parley_simulation.store_world import QUIET_SECONDS, RUN_LIMIT_SECONDS, jump_walls, read_all, replay, tiny_settings
from parley_simulation.view_judge import stories_of_views
from services.gateway.app import open_gateway
from services.gateway.config import GatewaySettings
from services.gateway.tokens import KeyRing, TokenVerifier, verifying_key
from services.router.app import open_router
from services.router.config import RouterSettings
from services.store.app import open_store
from services.store.apply import GROUP
from services.store.config import StoreSettings
from services.store.rows import DEDUPE, TABLES

STORES = 2
GATEWAYS = 2
# Beyond a router's patience (10 s): what devices missed meanwhile, their digests tell.
GATEWAY_FREEZE_SECONDS_MAX = 25.0
DEVICES_A_USER = (1, 1, 1, 1, 2, 2, 2, 4)
BOTS = 0.2  # of users have one
WEEKS_DAYS = (20, 25)  # beyond what the log keeps, and what is remembered of requests; 25: also beyond the rows' own time
NEVER_SECONDS = 1e9
SLOTS = 8  # few, so that every one has users
PATIENCE_SECONDS = 600.0  # for a device to get its outcomes and to catch up: many backoffs
LAST_ACKS_SECONDS = 60.0  # for the last watermarks to reach everybody
USERS = ("alice", "bob", "carol", "dave")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
# A device's rate and frame are small, so that Retry is an everyday thing; so are groups.
GATEWAY_SETTINGS = GatewaySettings.model_validate(
    {
        "commands_per_second": 2,
        "commands_burst": 3,
        "commands_per_frame": 3,
        "group_members": 2,
        "slot_count": SLOTS,
        "slots_per_second": 2,
        "offline_grace_seconds": 1.0,
        "digest_check_seconds": 15.0,
        "outbox_fields": 12,  # few, so that a device that reads slowly is cut off within seconds
    }
)


class World:
    """All processes of one simulation."""

    def __init__(self, simulation: Simulation, plan: Plan, store_settings: StoreSettings, *, only_router_dies: bool) -> None:
        self.simulation = simulation
        self.commands: list[tuple[int, LogRecord]] = []  # all that came to the log, once it was judged
        self._seconds = plan.seconds
        names = [*(f"store-{n}" for n in range(STORES)), "router", *(f"gateway-{n}" for n in range(GATEWAYS))]
        self._on_machine = names
        # Some runs spare the gateways: where nobody syncs, nothing repairs what went missing.
        self._victims = simulation.rng.sample(names, simulation.rng.randint(1, len(names)))
        self._store_settings = store_settings
        self._store, self._router = Endpoint(), Endpoint()
        self._public = {f"gateway-{n}": Endpoint() for n in range(GATEWAYS)}  # by the address that devices know
        self._internal: dict[str, Endpoint] = {}  # by the instance's address
        self._ownership = OwnershipJudge(simulation.registry)
        self._gateway_settings = GATEWAY_SETTINGS
        self._stops: dict[str, asyncio.Event] = {}  # by gateway: stop in order
        key = verifying_key(KEY.public_key())
        assert key is not None
        self._verifier = TokenVerifier(KeyRing({"": key}), simulation.clock)
        users = USERS[: plan.users]
        restlessness, attention = simulation.rng.choice((CALM, 1.0)), simulation.rng.choice((0.0, 0.5))
        self.crowd = Crowd(users, list(self._public.values()), restlessness=restlessness, attention=attention)
        if only_router_dies:
            # Nobody syncs, so nothing is repaired: neither because a slot moved, nor because a digest differed.
            self._victims, self.crowd.restlessness = ["router"], CALM
            self._gateway_settings = GATEWAY_SETTINGS.model_copy(update={"digest_check_seconds": NEVER_SECONDS})
        self.devices = [
            SimulatedDevice(simulation, self.crowd, Device(user, f"{user}-{number}"), self._public, KEY, plan.actions)
            for user in users
            for number in range(simulation.rng.choice(DEVICES_A_USER))
        ]
        self.bots = [
            Bot(simulation, self.crowd, Device(user, f"{user}-bot"), self._public, KEY, plan.actions)
            for user in users
            if simulation.rng.random() < BOTS
        ]
        self._away: list[SimulatedDevice] = []
        self._read: dict[str, list[tuple[int, LogRecord]]] = {COMMANDS: [], EVENTS: []}  # before it expired

    @property
    def _clients(self) -> list[SimulatedDevice | Bot]:
        return [*self.devices, *self.bots]

    async def run(self) -> Verdict:
        """Let devices and faults do their worst, heal, wait, judge."""
        simulation = self.simulation
        services = [simulation.keep_running(f"store-{n}", self._run_store) for n in range(STORES)]
        services.append(simulation.keep_running("router", self._run_router))
        services += [simulation.keep_running(name, partial(self._run_gateway, public_address=name)) for name in self._public]
        services += [simulation.keep_running(one.device.device_id, one.run) for one in self._clients]
        return await simulation.run(*services, until=self._drive())

    async def _drive(self) -> Verdict:
        simulation = self.simulation
        jumps = asyncio.create_task(jump_walls(simulation))
        kills = asyncio.create_task(simulation.kill_sometimes(self._victims))
        away = asyncio.create_task(self._send_away())
        patience = dict.fromkeys([*self._victims, *(one.device.device_id for one in self._clients)], PAUSE_SECONDS_MAX)
        patience |= dict.fromkeys(self._public, GATEWAY_FREEZE_SECONDS_MAX)
        freezes = asyncio.create_task(simulation.freeze_sometimes(patience))
        losses = asyncio.create_task(simulation.lose_registry_sometimes())
        drains = asyncio.create_task(self._drain_sometimes())
        losses_of_power = asyncio.create_task(self._lose_power_sometimes())
        await asyncio.sleep(self._seconds)
        jumps.cancel()
        kills.cancel()
        freezes.cancel()
        losses.cancel()
        drains.cancel()
        losses_of_power.cancel()
        if not away.done():
            away.cancel()
        simulation.faults.heal()
        await asyncio.sleep(QUIET_SECONDS)
        await self._let_weeks_pass()
        for one in self._clients:
            await self._wait_idle(one)
        await asyncio.sleep(LAST_ACKS_SECONDS)
        await simulation.settle()
        return await self._judge()

    async def _wait_idle(self, one: SimulatedDevice | Bot) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await one.idle.wait()
                if isinstance(one, SimulatedDevice):
                    assert one.client is not None
                    await one.client.caught_up()
        except TimeoutError:
            raise BrokenError(f"{one.device} still waits, {PATIENCE_SECONDS:g} s after all faults ended") from None

    async def _send_away(self) -> None:
        """Switch devices off for weeks, whatever they are at."""
        stream = self.simulation.faults.stream("holidays")
        for one in self.devices:
            await asyncio.sleep(stream.rng.uniform(0.0, self._seconds / len(self.devices)))
            if stream.happens(AWAY):
                one.go_away(self.simulation.living[one.device.device_id].life)
                self._away.append(one)

    async def _let_weeks_pass(self) -> None:
        """If somebody is away, let that be for weeks: what has expired is gone.

        Bots have all their answers by then: they resend without looking whether it is stored, and after weeks nobody remembers.
        """
        if not self._away:
            return
        for bot in self.bots:
            if not bot.idle.is_set():
                await self._wait_idle(bot)
        await self.simulation.settle()
        for topic, found in self._read.items():
            found += await read_all(self.simulation.log, topic)
        await self.simulation.pass_days(self.simulation.rng.choice(WEEKS_DAYS))
        for one in self._away:
            one.come_back()

    async def _read_whole(self, topic: str) -> list[tuple[int, LogRecord]]:
        """Return all that ever came to a topic, a partition after the other."""
        found = self._read[topic] + await read_all(self.simulation.log, topic)
        return sorted(found, key=lambda item: (item[0], item[1].offset))

    async def _judge(self) -> Verdict:
        simulation, history = self.simulation, self.crowd.history
        for one in self.devices:
            one.finish()
        records = await self._read_whole(COMMANDS)
        self.commands = records
        batches = [EventBatch.FromString(record.value) for _, record in await self._read_whole(EVENTS)]
        tables = await simulation.timeline.dump()
        async with open_fresh_timeline(simulation, TABLES) as fresh:
            await replay(simulation, self._store_settings, records, fresh)
            replayed = await fresh.dump()
        if self._away:  # a replay writes anew what had its time
            gone = [point for point in replayed if point.table == DEDUPE and point not in tables]
            for point in gone:
                del replayed[point]
        simulation.trace.note("judge", f"tables {hash_of(tables)}")
        timelines = timelines_of(tables)
        entries = {where: [entry_of(event) for event in timeline.values()] for where, timeline in timelines.items()}
        history.readings["tables"] = entries
        decoded = [(CommandRecord.FromString(record.value), record.time_ms) for _, record in records]
        verdict = judge(history)
        judge_replay(verdict, tables, replayed)
        judge_published(verdict, [event for batch in batches for event in batch.events], timelines, entries)
        judge_rows(verdict, self.crowd.directs, decoded, tables, timelines)
        verdict.judged[Guarantee.UNREAD] += len(self.devices)
        for story in stories_of_views(self.devices, tables):
            verdict.blame(Fault.DIFFERENT, Guarantee.UNREAD, story)
        verdict.judged[Guarantee.RESUMES] += len(self.devices)
        self._ownership.judge(verdict, SLOTS)
        if not verdict.kept:
            raise ContractError(verdict)
        return verdict

    async def _drain_sometimes(self) -> None:
        """Stop a gateway in order every now and then, until cancelled."""
        stream = self.simulation.faults.stream("drainer")
        while True:
            await asyncio.sleep(stream.rng.uniform(10.0, 60.0))
            name = stream.rng.choice(list(self._public))
            if name in self._victims and name in self._stops and stream.happens(DRAIN):
                self._stops[name].set()

    async def _lose_power_sometimes(self) -> None:
        """Let the machine lose its power now and then, until cancelled, unless gateways are spared."""
        if self._public.keys() & {*self._victims}:
            await self.simulation.lose_power_sometimes(self._on_machine)

    async def _run_store(self, process: Incarnation) -> None:
        server = InProcessServer()
        async with open_store(
            self._store_settings,
            log=process.log,
            timeline=process.timeline,
            clock=self.simulation.clock,
            metrics=CollectorRegistry(),
            rng=process.rng,
        ) as store:
            store.register(server)
            with self._store.serving(server):
                await wait_superseded(process.timeline)

    async def _run_router(self, process: Incarnation) -> None:
        simulation, server = self.simulation, InProcessServer()

        @asynccontextmanager
        async def open_gateway_channel(instance: Instance) -> AsyncIterator[grpc.aio.Channel]:
            link = simulation.faults.stream(f"link {process.name} to {instance.address}")
            async with self._internal[instance.address].connect(process.name, link, keepalive=True) as channel:
                yield channel

        async with (
            self._connect(self._store, process, "store") as store_channel,
            open_router(
                RouterSettings(slot_count=SLOTS),
                log=process.log,
                registry=process.registry,
                store_channel=store_channel,
                open_gateway_channel=open_gateway_channel,
                clock=simulation.clock,
                metrics=CollectorRegistry(),
                rng=process.rng,
            ) as router,
        ):
            router.register(server)
            with self._router.serving(server):
                await asyncio.Event().wait()

    async def _run_gateway(self, process: Incarnation, public_address: str) -> None:
        simulation = self.simulation
        await simulation.machine.wait_restored(COMMANDS, GROUP)
        public, internal = InProcessServer(GATEWAY_SETTINGS.frame_bytes), InProcessServer()
        metrics = CollectorRegistry()
        async with (
            self._connect(self._store, process, "store") as store_channel,
            self._connect(self._router, process, "router") as router_channel,
            open_gateway(
                self._gateway_settings,
                log=process.log,
                store_channel=store_channel,
                router_channel=router_channel,
                verifier=self._verifier,
                clock=simulation.clock,
                metrics=metrics,
                rng=process.rng,
            ) as gateway,
        ):
            gateway.register_public(public)
            gateway.register_internal(internal)
            at = self._internal[process.name] = Endpoint()
            self._ownership.watch(public_address, gateway)
            with at.serving(internal), self._public[public_address].serving(public):
                async with gateway.own_slots(process.registry, address=process.name, public_address=public_address):
                    stopped = self._stops[public_address] = asyncio.Event()
                    try:
                        await first_of(stopped.wait(), gateway.wait_failed())
                        await gateway.drain()
                        process.life.die("its end, drained")
                        await asyncio.Event().wait()
                    finally:
                        if cut_off := metrics.get_sample_value("parley_gateway_goaways_total", {"reason": "slow"}):
                            simulation.faults.counts[CUT_OFF] += int(cut_off)

    @asynccontextmanager
    async def _connect(self, endpoint: Endpoint, process: Incarnation, to: str) -> AsyncIterator[grpc.aio.Channel]:
        link = self.simulation.faults.stream(f"link {process.name} to {to}")
        async with endpoint.connect(process.name, link, keepalive=True) as channel:
            checked: grpc.aio.Channel = channel
            yield checked


def partitions_of(seed: int) -> int:
    """Return how many partitions the log of a seed's run has."""
    return Random(f"{seed}/partitions").randint(1, 2)


def run_world(
    seed: int,
    *,
    plan: Plan | None = None,
    rates: Mapping[str, float] | None = None,
    only_router_dies: bool = False,
    keep_trace: bool = False,
    report: Report | None = None,
) -> Report:
    """Run one seed of the whole system and judge it; raises if the contract broke. Without a plan: all that a seed has."""
    plan = plan or Plan.of(Scene.SYSTEM, seed)
    found = report or Report()

    async def main(rng: Random) -> Report:
        count = partitions_of(seed)
        topics = {COMMANDS: count, EVENTS: count, OFFLINE: count, DEAD_LETTERS: count}
        chances = plan.rates if rates is None else rates
        if only_router_dies:
            repaired = {*REGISTRY_FAULTS, SLOW_READER}  # by a Sync
            chances = {kind: 0.0 if kind in repaired else chance for kind, chance in chances.items()}
        async with open_simulation(
            seed, topics=topics, durable_topics=(COMMANDS,), tables=(*TABLES, FACTS), rates=chances, keep_trace=keep_trace
        ) as simulation:
            world = World(simulation, plan, tiny_settings(rng), only_router_dies=only_router_dies)
            try:
                found.verdict = await world.run()
            finally:
                found.take_log(world.commands)
                found.take(simulation)
            return found

    return run_virtual(main, seed, RUN_LIMIT_SECONDS)
