"""Whose Consul's keys are, and which log is served, when answers get lost and writes come late: `chassis.registry_consul_claim`.

The simulated registry has no claims: they are asked before it, of Consul's keys. Here they are asked by the processes of clusters
that share a prefix by mistake, or by those of one that an operator brings to its next log.
"""

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import structlog

from chassis.registry import RegistryRefusedError, RegistryUnavailableError
from chassis.registry_consul_claim import Claim, Claims
from chassis.testing.faults import OUTAGE, REGISTRY_FAILS, SLOW, WRITE_LATE, Faults, Trace
from chassis.testing.faulty_consul import ConsulKeys, FaultyKeys
from chassis.testing.virtual_loop import run_virtual
from tests.mutation import replace

SEEDS = 100
RATES = {REGISTRY_FAILS: 0.2, WRITE_LATE: 0.15, OUTAGE: 0.02, SLOW: 0.2}
TROUBLE_SECONDS = 60.0
QUIET_SECONDS = 120.0  # after it all that was late has come, and everybody has asked again
NEXT_EPOCH = 2
RIVALS = (Claim("two", "kafka/", 1, "tables of two"), Claim("one", "another kafka/", 1), Claim("one", "kafka/", 1, "other tables"))


class Process:
    """One who claims, again with each new session, until he is refused."""

    def __init__(self, keys: ConsulKeys, faults: Faults, name: str, claim: Claim) -> None:
        self.name = name
        self.claim = claim
        self.refused = ""
        self.is_in = False
        self._rng = Random(name)
        self._claims = Claims(FaultyKeys(keys, faults.stream(name)), "parley", claim, self._rng)  # type: ignore[arg-type]

    async def run(self, begins: float) -> None:
        await asyncio.sleep(begins)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._claim_again())
                both.create_task(self._claims.wait_refused())
        except* RegistryRefusedError as errors:
            self.refused, self.is_in = str(errors.exceptions[0]), False

    async def _claim_again(self) -> None:
        while True:
            try:
                await self._claims.make()
            except RegistryUnavailableError:
                await asyncio.sleep(self._rng.uniform(0.1, 2.0))
            else:
                self.is_in = True
                await asyncio.sleep(self._rng.uniform(1.0, 40.0))  # until the session is lost

    async def note(self, epoch: int) -> None:
        """Be the operator who says it until he is heard."""
        while True:
            try:
                return await self._claims.note_epoch(epoch)
            except RegistryUnavailableError:
                await asyncio.sleep(self._rng.uniform(0.1, 2.0))


async def claim_all(seed: int, *, goes_on: bool) -> str:
    """Return what is wrong in the end. If it `goes_on` a cluster gets its next log, else it has rivals and keys may get lost."""
    rng, faults, keys = Random(seed), Faults(seed, Trace(), RATES), ConsulKeys("consul")
    epochs: list[int] = []
    write = keys.write

    def noting(key: str, value: str, cas: int | None) -> bool:
        done = write(key, value, cas)
        if done and key == "parley/log-epoch":
            epochs.append(int(value))
        return done

    keys.write = noting  # type: ignore[method-assign]
    ours = [Claim("one", "kafka/", 1, "tables"), Claim("one", "kafka/", 1, "tables"), Claim("one", "kafka/", 1)]
    claims = ours if goes_on else [*ours, rng.choice(RIVALS), rng.choice(RIVALS)]
    processes = [Process(keys, faults, f"{number}", claim) for number, claim in enumerate(claims)]
    runs = [asyncio.create_task(process.run(rng.choice((0.0, rng.uniform(0.0, 20.0))))) for process in processes]
    later = [Process(keys, faults, "store of the next", Claim("one", "kafka/", NEXT_EPOCH, "tables"))]
    later.append(Process(keys, faults, "gateway of the next", Claim("one", "kafka/", NEXT_EPOCH)))
    loses = not goes_on and rng.random() < 0.5
    if goes_on:
        await asyncio.sleep(rng.uniform(0.0, 5.0))
        await Process(keys, faults, "operator", ours[0]).note(NEXT_EPOCH)
        runs += [asyncio.create_task(process.run(rng.uniform(0.0, 20.0))) for process in later]
    elif loses:
        await asyncio.sleep(rng.uniform(0.0, TROUBLE_SECONDS))
        keys.lose_data()
    await asyncio.sleep(TROUBLE_SECONDS)
    faults.heal()
    await asyncio.sleep(QUIET_SECONDS)
    await keys.settle()
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    if goes_on:
        return _wrong_with_epochs(epochs, processes, later)
    return _wrong_with_owners(keys, processes, lost=loses)


def _wrong_with_epochs(epochs: list[int], over: list[Process], later: list[Process]) -> str:
    if epochs != sorted(epochs):
        return f"the log epoch went back: {epochs}"
    if stay := [process.name for process in over if not process.refused]:
        return f"{stay} serve a log that is over"
    return "".join(f"{process.name} is out: {process.refused}. " for process in later if not process.is_in)


def _wrong_with_owners(keys: ConsulKeys, processes: list[Process], *, lost: bool) -> str:
    owner = {key.removeprefix("parley/"): entry["Value"].decode() for key, entry in keys.entries.items()}
    for process in processes:
        claim = process.claim
        told = {"cluster": claim.cluster_id, "log": claim.log_id} | ({"tables": claim.tables_id} if claim.tables_id else {})
        if lost and process.refused:
            continue  # by whom was there before
        if process.is_in != (told.items() <= owner.items()):
            return f"{claim} is {'in' if process.is_in else 'out: ' + process.refused}, and the keys are {owner}"
    return ""


def wrong(*, goes_on: bool) -> Iterator[str]:
    """Yield what was wrong, by seed."""

    async def main(rng: Random) -> str:
        return await claim_all(rng.randrange(1 << 32), goes_on=goes_on)

    for seed in range(SEEDS):
        with structlog.testing.capture_logs():
            what = run_virtual(main, seed)
        if what:
            yield f"{seed}: {what}"


@pytest.mark.parametrize("goes_on", [False, True], ids=["two-clusters", "next-log"])
def test_whatever_gets_lost_or_comes_late_one_cluster_and_one_log_are_served(goes_on):
    assert list(wrong(goes_on=goes_on)) == []


@pytest.mark.parametrize(
    ("goes_on", "function", "old", "new"),
    [
        (False, "_hold", "put(key, ours, cas=0)", "put(key, ours)"),
        (True, "note_epoch", 'cas=0 if entry is None else entry["ModifyIndex"]', "cas=None"),
        (True, "_compare", "if noted > ours:", "if noted > ours + 1:"),
    ],
    ids=["first-write-is-no-claim", "epoch-is-overwritten", "who-has-no-tables-serves-on"],
)
def test_a_broken_rule_is_found(goes_on: bool, function: str, old: str, new: str, monkeypatch: Any) -> None:
    replace(monkeypatch, Claims, function, old, new)
    assert any(wrong(goes_on=goes_on))
