"""The slots of one gateway of two, at the points of its life that tests begin at."""

from collections.abc import Iterable

from chassis.registry import Epoch, Holder, Instance
from parley_protocol.slots import rank, slot_key
from services.gateway.slots import Slots

COUNT = 8
SETTLE = 10.0
ONE, TWO = (Instance("gateway", name, f"{name}-inside:1", f"{name}:1") for name in ("g1", "g2"))
FIRST = {slot for slot in range(COUNT) if rank("g1", slot) > rank("g2", slot)}  # what the first of the two should have


def gateway(count: int = COUNT, rate: float = 1000.0, *, alone: bool = False) -> Slots:
    """Return the first gateway's slots, under a session that began at 0."""
    slots = Slots("g1", count, settle_seconds=SETTLE, slots_per_second=rate, alone=alone)
    slots.on_session("s1", 0.0)
    return slots


def held(slots: Iterable[int], name: str = "g1", session: str = "s1", index: int = 1) -> dict[str, Holder]:
    return {slot_key(slot): Holder(name, Epoch(session, index)) for slot in slots}


def owner(*, of: Iterable[int] = range(COUNT), instances: tuple[Instance, ...] = (ONE, TWO)) -> Slots:
    """Return a gateway that owns slots since long ago."""
    slots = gateway()
    slots.on_instances(instances, -100.0)
    slots.on_holders({}, 0.0)
    slots.on_acquired(of, {slot: Epoch("s1", 1) for slot in of}, 0.0)
    slots.on_holders(held(of), 0.0)
    return slots
