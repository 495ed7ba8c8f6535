"""Slots on a real Consul: who serves whom when gateways come, go and are cut off, and when Consul forgets."""

import asyncio
import json
import random
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from engine_fixtures import EnginesOfTheRun
from own_consul import open_own_consul
from own_engine import open_own_engine
from prometheus_client import CollectorRegistry
from tcp_link import open_link

from chassis.clock import SystemClock
from chassis.registry import Instance, RegistryRefusedError
from chassis.registry_consul import open_consul_registry
from chassis.registry_consul_claim import Claim
from chassis.registry_consul_http import ConsulSettings
from chassis.registry_consul_session import CHECK_SECONDS
from parley_protocol.slots import GATEWAYS, SLOT_COUNT, rank
from services.gateway.metrics import Metrics
from services.gateway.ownership import Ownership, open_ownership
from services.gateway.slots import Ended, Slots

pytestmark = pytest.mark.engines("consul")
DEADLINE_SECONDS = 40.0
# In use 10: how long one who is new to the registry waits for those whose slots they may be. They look for it every 2 s.
SETTLE_SECONDS = 4.0
ALL = set(range(SLOT_COUNT))


class Gateway:
    """What a gateway is to the registry."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.slots = Slots(name, SLOT_COUNT, settle_seconds=SETTLE_SECONDS, slots_per_second=SLOT_COUNT)
        self.ended: list[int] = []
        self.ownership: Ownership | None = None

    @property
    def owns(self) -> set[int]:
        return set(self.slots.epochs)

    def on_ended(self, ended: Sequence[Ended]) -> None:
        self.ended += [one.slot for one in ended]


@asynccontextmanager
async def open_gateway(name: str, address: str, prefix: str) -> AsyncIterator[Gateway]:
    gateway, rng = Gateway(name), random.Random(name)
    settings = ConsulSettings(address=address, prefix=prefix)
    instance = Instance(GATEWAYS, name, "127.0.0.1:1", f"{name}.test:443")
    async with open_consul_registry(settings, claim=Claim("test"), version="0", rng=rng) as registry:
        ownership = Ownership(
            gateway.slots, registry, instance, gateway.on_ended, clock=SystemClock(), metrics=Metrics(CollectorRegistry()), rng=rng
        )
        async with open_ownership(ownership):
            gateway.ownership = ownership
            yield gateway


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something shows that several gateways have a part in."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def fairly_shared(*gateways: Gateway) -> Callable[[], bool]:
    """Return whether each owns what rendezvous hashing gives it, and so each slot one of them."""
    shares: dict[str, set[int]] = {gateway.name: set() for gateway in gateways}
    for slot in ALL:
        shares[max(shares, key=lambda name: rank(name, slot))].add(slot)
    return lambda: all(gateway.owns == shares[gateway.name] for gateway in gateways)


async def test_gateways_share_all_slots_and_a_cut_one_serves_on_until_it_learns_better(engines: EnginesOfTheRun) -> None:
    consul, prefix = engines.address("consul"), f"test-{uuid.uuid4().hex}"
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(open_link(consul))
        cut = await stack.enter_async_context(open_gateway("g1", link.address, prefix))
        two = await stack.enter_async_context(open_gateway("g2", consul, prefix))
        await until(fairly_shared(cut, two))
        three = await stack.enter_async_context(open_gateway("g3", consul, prefix))
        await until(fairly_shared(cut, two, three))

        before = cut.owns
        cut.ended.clear()
        link.cut()
        began = time.monotonic()
        await until(fairly_shared(two, three))
        assert time.monotonic() - began < 15  # the check's 5 s, the lock-delay's 1 s, and retries
        assert cut.owns == before  # nobody has told it: its devices stay
        assert not cut.ended
        link.mend()
        await until(lambda: set(cut.ended) == before)  # now it has been told
        await until(fairly_shared(cut, two, three))


@pytest.mark.parametrize("data", ["kept", "lost"])
async def test_while_consul_is_away_nothing_moves_and_when_it_is_back_each_has_what_it_had(
    tmp_path: Path, engines: EnginesOfTheRun, data: str
) -> None:
    engines.address("consul")
    with open_own_consul(tmp_path) as consul:
        async with open_gateway("g1", consul.address, "parley") as one, open_gateway("g2", consul.address, "parley") as two:
            await until(fairly_shared(one, two))
            epochs = {**one.slots.epochs, **two.slots.epochs}
            one.ended.clear()
            two.ended.clear()
            consul.stop()
            if data == "lost":
                consul.lose_data()
            await asyncio.sleep(1)  # an outage, in which nothing may happen
            assert fairly_shared(one, two)()
            consul.start()
            if data == "lost":  # all are locked anew
                await until(lambda: not set(epochs.values()) & {*one.slots.epochs.values(), *two.slots.epochs.values()})
            else:
                await asyncio.sleep(3)  # in which everybody finds it again
            assert fairly_shared(one, two)()
            assert one.ended == two.ended == []


async def until_no_room(address: str) -> None:
    """Wait until Consul takes this no more. It goes on to take now and then what fits into pages of its file that came free."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await asyncio.to_thread(takes_a_key, address):
            pass


def takes_a_key(address: str) -> bool:
    request = urllib.request.Request(f"http://{address}/v1/kv/other/key", bytes(1000), method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bool(json.load(answer))
    except urllib.error.HTTPError:  # 500: raft apply failed
        return False


async def test_while_consul_has_no_room_no_slot_has_two_owners_and_when_it_has_all_have_one(
    tmp_path: Path, engines: EnginesOfTheRun
) -> None:
    engines.require("consul")
    with open_own_engine("consul", tmp_path, disk_size="16m") as consul:
        disk, address = consul.disk, consul.started.address
        assert disk is not None
        async with open_gateway("g1", address, "parley") as one, open_gateway("g2", address, "parley") as two:
            async with open_gateway("g3", address, "parley") as three:
                await until(fairly_shared(one, two, three))
                disk.fill()
                await until_no_room(address)
                await asyncio.sleep(CHECK_SECONDS + 2)  # sessions hang on checks, which an outage may not let run out
                assert is_apart(one, two, three)
            await asyncio.sleep(CHECK_SECONDS + 2)  # one that ends now leaves what it had to nobody, or to one each
            assert is_apart(one, two)
            assert not consul.wait_ended(0), "Consul stays, says no, and needs nobody to start it again"

            disk.empty()
            await until(fairly_shared(one, two))


def is_apart(*gateways: Gateway) -> bool:
    """Tell whether no slot has two owners."""
    return len(set().union(*(gateway.owns for gateway in gateways))) == sum(len(gateway.owns) for gateway in gateways)


async def test_a_consul_that_ends_without_room_is_started_again_with_what_it_had(tmp_path: Path, engines: EnginesOfTheRun) -> None:
    engines.require("consul")
    with open_own_engine("consul", tmp_path, disk_size="16m") as consul:
        disk, address = consul.disk, consul.started.address
        assert disk is not None
        async with open_gateway("g1", address, "parley") as one, open_gateway("g2", address, "parley") as two:
            await until(fairly_shared(one, two))
            epochs = {**one.slots.epochs, **two.slots.epochs}
            one.ended.clear()
            two.ended.clear()
            disk.fill()
            await until_no_room(address)
            consul.kill()
            disk.empty()
            assert consul.started.address == address
            await asyncio.sleep(3)  # in which everybody finds it again
            assert takes_a_key(address)
            assert {**one.slots.epochs, **two.slots.epochs} == epochs
            assert one.ended == two.ended == []
        other = open_consul_registry(
            ConsulSettings(address=address, prefix="parley"), claim=Claim("other"), version="0", rng=random.Random(1)
        )
        with pytest.raises(RegistryRefusedError, match="belong to cluster 'test', not to 'other'"):
            await other.__aenter__()


async def test_a_gateway_that_drains_hands_over_everything(engines: EnginesOfTheRun) -> None:
    consul, prefix = engines.address("consul"), f"test-{uuid.uuid4().hex}"
    async with open_gateway("g1", consul, prefix) as one, open_gateway("g2", consul, prefix) as two:
        await until(fairly_shared(one, two))
        had = one.owns
        one.ended.clear()
        assert one.ownership is not None
        async with asyncio.timeout(DEADLINE_SECONDS):
            await one.ownership.drain()
        assert two.owns == ALL
        assert set(one.ended) == had
