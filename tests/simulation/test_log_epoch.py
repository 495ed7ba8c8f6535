"""The tables get another log under faults: who serves the old one stops, nobody before that, and no late word brings it back."""

import asyncio
from random import Random

import pytest

from chassis.testing.faults import RATES
from chassis.testing.virtual_loop import run_virtual
from chassis.timeline import TimelineUnavailableError
from parley_simulation import epoch_fact
from parley_simulation.epoch_fact import FACTS, FIRST_EPOCH, raise_epoch, wait_superseded
from parley_simulation.processes import Incarnation, Simulation, open_simulation
from tests.mutation import replace

SEEDS = 40
STORES = [f"store-{number}" for number in range(3)]
TROUBLE_SECONDS = 120.0
QUIET_SECONDS = 200.0  # beyond the longest pause, and all that was late


class Raised:
    """Stores that ask, and an operator who raises the epoch."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._told: set[str] = set()  # incarnations that know
        self._begun = False  # since when they may
        self.wrong: list[str] = []

    async def run(self) -> None:
        simulation = self._simulation
        services = [simulation.keep_running(name, self._serve) for name in STORES]
        await simulation.run(*services, until=self._drive())

    async def _serve(self, process: Incarnation) -> None:
        epoch = await wait_superseded(process.timeline)
        if not self._begun or epoch != FIRST_EPOCH + 1:
            self.wrong.append(f"{process.name} stops for epoch {epoch} {'' if self._begun else 'before it was raised'}")
        self._told.add(process.name)
        await asyncio.Event().wait()  # it would end here, and be started for the other log

    async def _drive(self) -> None:
        simulation, rng = self._simulation, self._simulation.rng
        kills = asyncio.create_task(simulation.kill_sometimes(STORES))
        await self._say(FIRST_EPOCH)
        await asyncio.sleep(rng.uniform(0.0, TROUBLE_SECONDS))
        self._begun = True
        await self._say(FIRST_EPOCH + 1)
        if rng.random() < 0.5:
            await self._say(FIRST_EPOCH)  # as one who runs an older procedure again
        await asyncio.sleep(rng.uniform(0.0, TROUBLE_SECONDS))
        kills.cancel()
        simulation.faults.heal()
        await asyncio.sleep(QUIET_SECONDS)
        living = {simulation.living[name].name for name in STORES}
        self.wrong += [f"{name} serves on" for name in sorted(living - self._told)]

    async def _say(self, epoch: int) -> None:
        operator = self._simulation.incarnate(f"operator of {epoch}", immortal=True)
        while True:
            try:
                return await raise_epoch(operator.timeline, epoch)
            except TimelineUnavailableError:
                await asyncio.sleep(operator.rng.uniform(0.1, 5.0))


def wrong_in(seed: int) -> list[str]:
    async def main(_: Random) -> list[str]:
        async with open_simulation(seed, topics={}, durable_topics=(), tables=(FACTS,), rates=RATES) as simulation:
            raised = Raised(simulation)
            await raised.run()
            return raised.wrong

    return run_virtual(main, seed)


def test_all_who_serve_the_old_log_stop_once_it_is_over():
    assert [(seed, wrong) for seed in range(SEEDS) if (wrong := wrong_in(seed))] == []


def test_an_epoch_that_a_late_word_takes_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, epoch_fact, "raise_epoch", "stamp=epoch", "stamp=1")
    monkeypatch.setitem(globals(), "raise_epoch", epoch_fact.raise_epoch)
    assert any(map(wrong_in, range(SEEDS)))
