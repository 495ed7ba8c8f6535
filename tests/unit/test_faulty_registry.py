"""What the registry of the simulation calls a theft: who takes what is another one's while that one may still come back for it."""

import asyncio
from random import Random

import pytest

from chassis.registry import Instance
from chassis.registry_memory import MemoryRegistry
from chassis.testing.faults import DATA_LOST, Faults, Life, Trace
from chassis.testing.faulty_registry import STRANGE_SECONDS, FaultyRegistry, RegistryEngine
from chassis.testing.virtual_loop import run_virtual

KEY = "slots/1"
FIRST, SECOND = (Instance("gateway", name, f"{name}:1") for name in ("g1", "g2"))


async def thefts(*, asks_for_its_own: bool, seconds: float, comes_back: bool) -> list[str]:
    """Let all data be lost, the first owner let the lock go if it `comes_back`, and a second one get it, who asked before that."""
    faults, serves = Faults(0, Trace(), {DATA_LOST: 1.0}), {"g1"}
    engine = RegistryEngine("registry", MemoryRegistry())
    engine.still_serves = lambda instance_id, _key: instance_id in serves
    registries = []
    for name in ("g1", "g2"):
        stream = faults.stream(name)
        registries.append(FaultyRegistry(engine, stream, Life(name, stream, lambda _: None)))
    async with registries[0].open_session(FIRST) as session:
        await session.acquire([KEY])
    engine.lose_data(faults.stream("registry"))
    engine.away_until = 0.0
    await asyncio.sleep(seconds)
    async with registries[0].open_session(FIRST) as first, registries[1].open_session(SECOND) as second:
        if comes_back:
            await first.acquire([KEY])
            await first.release([KEY])
        if asks_for_its_own:
            serves.add("g2")
        asking = asyncio.create_task(second.acquire([KEY]))
        await asyncio.sleep(0)
        assert not asking.done(), "the question is on its way"
        serves.discard("g2")  # a view says that it is the first one's
        assert list(await asking) == [KEY]
    return engine.stolen


@pytest.mark.parametrize(
    ("asks_for_its_own", "seconds", "comes_back", "found"),
    [
        (False, 0.0, False, True),
        (False, STRANGE_SECONDS / 2, False, True),
        (False, STRANGE_SECONDS, False, False),
        (True, 0.0, True, False),
        (False, 0.0, True, True),
    ],
    ids=["at once", "too soon", "in time", "asked while it was his", "let go to one who is new"],
)
def test_taking_too_soon_what_was_not_ones_own_when_one_asked_is_theft(
    asks_for_its_own: bool, seconds: float, comes_back: bool, found: bool
) -> None:
    async def main(_rng: Random) -> list[str]:
        return await thefts(asks_for_its_own=asks_for_its_own, seconds=seconds, comes_back=comes_back)

    assert bool(run_virtual(main)) is found
