"""What only a gateway can see, noted in files by it and read by the judge: whose frames it took, and whether its slots are at rest.

A file for each process, replaced a few times a second: what a killed one saw last may be missing, what it took wrongly is not.
"""

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from chassis.registry import Epoch
from parley_protocol.slots import fingerprint

_WRITE_SECONDS: Final = 0.2
_KEPT_STORIES: Final = 20


@dataclass
class Notes:
    """Of one process of a gateway."""

    pid: int
    slots: int = 0
    at_rest: bool = False  # it has a session, all slots that it should have, and each other slot has its owner
    among: list[str] = field(default_factory=list)  # the gateways that it shares the slots out among, by its view of the registry
    frames: int = 0  # slots of frames that were looked at
    foreign: int = 0  # of these: taken under an epoch that was not this gateway's own
    stories: list[str] = field(default_factory=list)


def keep_notes(folder: Path) -> None:
    """Watch the gateway that this process is about to run. Nothing of the gateway's own checks is relied on."""
    from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse
    from services.gateway.deliver import GatewayRpc
    from services.gateway.ownership import Ownership
    from services.gateway.slots import Slots

    notes = Notes(os.getpid())
    file = folder / f"{notes.pid}.json"
    lock = threading.Lock()

    def write() -> None:
        with lock:
            scratch = file.with_suffix(".new")
            scratch.write_text(json.dumps(asdict(notes)), encoding="utf-8")
            scratch.replace(file)

    deliver, step, lost = GatewayRpc.deliver, Ownership._step, Slots.on_session_lost
    fingerprint_of = _Fingerprints()

    def watched_deliver(self: GatewayRpc, request: DeliverRequest) -> DeliverResponse:
        held = dict(self._slots.epochs)
        response = deliver(self, request)
        before = notes.foreign
        for slot, is_own in _taken(request, set(response.refused_slots), held, self._slots, fingerprint_of):
            notes.frames += 1
            if not is_own:
                notes.foreign += 1
                if len(notes.stories) < _KEPT_STORIES:
                    which = "all slots" if slot < 0 else f"slot {slot}"
                    notes.stories.append(f"a gateway took a frame for {which} under an epoch that is not its own")
        if notes.foreign != before:
            write()
        return response

    async def watched_step(self: Ownership, session: Any) -> float:
        again_at = await step(self, session)
        notes.slots = len(self._slots.epochs)
        notes.among = sorted(self._slots.shared_among)
        notes.at_rest = again_at == math.inf and self._slots.is_clear
        return again_at

    def watched_lost(self: Slots) -> None:
        notes.at_rest = False
        lost(self)

    GatewayRpc.deliver = watched_deliver  # type: ignore[method-assign]
    Ownership._step = watched_step  # type: ignore[method-assign]
    Slots.on_session_lost = watched_lost  # type: ignore[method-assign]

    def write_on() -> None:
        pause = threading.Event()
        while not pause.wait(_WRITE_SECONDS):
            write()

    threading.Thread(target=write_on, name="chaos-notes", daemon=True).start()


def _taken(
    request: Any, refused: set[int], held: Mapping[int, Epoch], slots: Any, fingerprint_of: "_Fingerprints"
) -> Iterator[tuple[int, bool]]:
    """Yield the slots of a frame that were taken, and whether each was under the gateway's own epoch."""
    stamped: set[int] = set()
    if request.all_slots:
        if refused:
            return
        is_own = len(held) == slots.count and fingerprint_of(held) == request.all_slots
        stamped.update(range(slots.count))
        yield -1, is_own
    for stamp in request.epochs:
        for slot, lock_index in zip(stamp.slots, stamp.lock_indexes, strict=True):
            stamped.add(slot)
            if slot not in refused:
                yield slot, held.get(slot) == Epoch(stamp.session_id, lock_index)
    for event in request.events:
        for user in event.recipients:
            slot = slots.slot_of(user)
            if slot not in stamped:
                yield slot, False


class _Fingerprints:
    """Computes the fingerprint of slots, once as long as they are the same: it takes a millisecond."""

    def __init__(self) -> None:
        self._held: Mapping[int, Epoch] = {}
        self._number = 0

    def __call__(self, held: Mapping[int, Epoch]) -> int:
        if held != self._held:
            self._held, self._number = held, fingerprint(held)
        return self._number


def read_notes(folder: Path) -> dict[int, Notes]:
    """Return what all processes of gateways noted, by pid."""
    found = (Notes(**json.loads(file.read_text(encoding="utf-8"))) for file in folder.glob("*.json"))
    return {notes.pid: notes for notes in found}
