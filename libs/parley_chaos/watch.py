"""What a run watches beside what devices record: G14 in the gateways' notes, G15 while Consul is away, G21 after each fault."""

import asyncio
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from parley_chaos.load import Load, LoadStoppedError
from parley_chaos.notes import read_notes
from parley_chaos.plan import Fault, Kind
from parley_checker.guarantees import Guarantee
from parley_checker.verdict import Fault as Broken
from parley_checker.verdict import Verdict
from parley_client.notices import ConnectionState
from parley_cluster.supervisor import Child

MEANWHILE_SECONDS: Final = 30.0  # for all devices to get answers while Consul is away: far more than the slowest fault costs
_AFTER_SECONDS: Final = 6.0  # after Consul's return: a gateway learns of a lost session within a second or two
_REST_SECONDS: Final = 30.0  # until the slots lie where they should, given that nothing is wrong
_CALM_SECONDS: Final = 2.0  # a device that is told to move hears it later than its gateway is done with it
_LOOK_SECONDS: Final = 0.1  # notes are files
_CONSUL: Final = "consul"
_ERROR: Final = re.compile(r"\S+ \[(error|critical) *\] ")
# What aiokafka leaves of a commit that took too long, and gRPC of an answer to a caller who had given up.
_OF_LIBRARIES: Final = ("was never retrieved", "raised in core by servicer method")


class Watch:
    """Keeps a verdict of its own, for `Verdict.add`."""

    def __init__(self, load: Load, children: Mapping[str, Child], notes: Path) -> None:
        self.verdict = Verdict()
        self._load = load
        self._children = children
        self._notes = notes
        self._ends_before: dict[str, int] | None = None
        self._outage = ""

    async def begin(self, faults: tuple[Fault, ...]) -> bool:
        """Tell whether a round is one that nobody may notice: Consul away, alone, from a cluster whose slots are at rest.

        Then `flow_meanwhile` is to be awaited while it lasts, and `end` after it.
        """
        if len(faults) != 1 or not _is_outage(faults[0]) or not await self._at_rest():
            return False
        self._outage = f"{faults[0].kind} {faults[0].target}"
        self._ends_before = {str(one.device): len(one.ends) for one in self._load.devices}
        return True

    async def flow_meanwhile(self) -> None:
        """Judge that messages flow while Consul is away."""
        self.verdict.judged[Guarantee.REGISTRY] += len(self._load.devices)
        try:
            await self._load.wait_flowing(MEANWHILE_SECONDS)
        except LoadStoppedError as error:
            self.verdict.blame(Broken.STOPPED, Guarantee.REGISTRY, f"while Consul was away ({self._outage}): {error}")

    async def end(self) -> None:
        """Judge that no device was sent away or cut, until those who lost a session have noticed."""
        if self._ends_before is None:
            return
        await asyncio.sleep(_AFTER_SECONDS)
        before, self._ends_before = self._ends_before, None
        self.verdict.judged[Guarantee.REGISTRY] += len(before)
        for one in self._load.devices:
            for why in one.ends[before[str(one.device)] :]:
                story = f"{one.device} was cut off by {self._outage}: {why}"
                self.verdict.blame(Broken.MISPLACED, Guarantee.REGISTRY, story)

    def resumed(self) -> None:
        """Note that all devices had their answers again after a round, and all services were back."""
        self.verdict.judged[Guarantee.RESUMES] += len(self._load.devices) + len(self._children)

    def stopped(self, story: str) -> None:
        """Note that somebody did not go on by himself."""
        self.verdict.blame(Broken.STOPPED, Guarantee.RESUMES, story)

    def jumped(self) -> None:
        """Note that a clock was wrong; what that may not change is judged with all else."""
        self.verdict.judged[Guarantee.CLOCKS] += 1

    def judge(self) -> Verdict:
        """Return all that was seen."""
        for notes in read_notes(self._notes).values():
            self.verdict.judged[Guarantee.EPOCHS] += notes.frames
            for story in notes.stories:
                self.verdict.blame(Broken.MISPLACED, Guarantee.EPOCHS, story)
            if notes.foreign > len(notes.stories):
                more = notes.foreign - len(notes.stories)
                self.verdict.blame(Broken.MISPLACED, Guarantee.EPOCHS, f"and {more} more", more)
        return self.verdict

    async def _at_rest(self) -> bool:
        """Wait until all gateways have the slots that they should have, and no device has been on the move for a while."""
        calm_since, ends = time.monotonic(), -1
        deadline = calm_since + _REST_SECONDS
        while (now := time.monotonic()) < deadline:
            before, ends = ends, sum(len(one.ends) for one in self._load.devices)
            connected = all(one.client.connection is ConnectionState.CONNECTED for one in self._load.devices)
            if before != ends or not connected or not self._slots_rest():
                calm_since = now
            elif now - calm_since >= _CALM_SECONDS:
                return True
            await asyncio.sleep(_LOOK_SECONDS)
        return False

    def _slots_rest(self) -> bool:
        """Tell whether nothing is to move. By itself a gateway that has not heard of another one yet is at rest, until it does."""
        gateways = {name: child for name, child in self._children.items() if name.startswith("gateway")}
        found = read_notes(self._notes)
        own = [found.get(child.pid) for child in gateways.values()]
        return all(notes is not None and notes.at_rest and notes.among == sorted(gateways) for notes in own)


def _is_outage(fault: Fault) -> bool:
    """Tell whether a fault takes Consul from all, or from such as no device hangs on. A gateway that is cut off loses its slots."""
    of_a_link = fault.target.endswith("-to-consul") and not fault.target.startswith("gateway")
    return fault.target == _CONSUL or (of_a_link and fault.kind not in (Kind.DELAY, Kind.TRICKLE))


def is_own_error(line: str) -> bool:
    """Tell whether a service logs an error that no fault is a reason for."""
    return _ERROR.match(line) is not None and not any(sentence in line for sentence in _OF_LIBRARIES)
