"""G14, G15: what no device sees, watched where it happens: whose frames a gateway takes, and why a slot ends."""

from collections.abc import Mapping
from typing import Any

from chassis.registry import Epoch
from chassis.testing.faulty_registry import RegistryEngine
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, DeliverResponse
from parley_checker.guarantees import Guarantee
from parley_checker.verdict import Fault, Verdict
from parley_protocol.slots import fingerprint, slot_key, slot_of_key
from services.gateway.app import Gateway


class OwnershipJudge:
    """Watches the gateways of one run."""

    def __init__(self, registry: RegistryEngine) -> None:
        self._registry = registry
        self._frames = 0
        self._ends = 0
        self._epochs: list[str] = []
        self._outages: list[str] = []
        self.living: dict[str, Gateway] = {}  # by the process's name
        registry.still_serves = self._still_serves

    def watch(self, name: str, gateway: Gateway) -> None:
        """Look at all that a gateway delivers, and at each slot that it lets go of."""
        self.living[name] = gateway
        gateway.slots.epochs = _Watched(self, name, gateway.instance_id)
        rpc: Any = gateway._rpc
        deliver = rpc.deliver

        def watched(request: DeliverRequest) -> DeliverResponse:
            held = dict(gateway.slots.epochs)
            response: DeliverResponse = deliver(request)
            self._on_frame(name, gateway, held, request, response)
            return response

        rpc.deliver = watched

    def _still_serves(self, instance_id: str, key: str) -> bool:
        slot = slot_of_key(key)
        return any(gateway.instance_id == instance_id and slot in gateway.slots.epochs for gateway in self.living.values())

    def _on_frame(
        self, name: str, gateway: Gateway, held: Mapping[int, Epoch], request: DeliverRequest, response: DeliverResponse
    ) -> None:
        refused = set(response.refused_slots)
        stamped: set[int] = set()
        for stamp in request.epochs:
            for slot, lock_index in zip(stamp.slots, stamp.lock_indexes, strict=True):
                self._frames += 1
                stamped.add(slot)
                if slot not in refused and held.get(slot) != Epoch(stamp.session_id, lock_index):
                    self._epochs.append(f"{name} took users of slot {slot} under an epoch that is not its own")
        if request.all_slots and not refused:
            self._frames += 1
            stamped.update(held)
            if fingerprint(held) != request.all_slots or len(held) != gateway.slots.count:
                self._epochs.append(f"{name} took users of all slots under epochs that are not its own")
        for event in request.events:
            if refused and request.all_slots:
                break
            for user in event.recipients:
                if gateway.slots.slot_of(user) not in stamped:
                    self._epochs.append(f"{name} was sent an event for {user} without his slot's epoch")

    def on_end(self, name: str, instance_id: str, slot: int, epoch: Epoch) -> None:
        """Note that a slot has ended at a gateway."""
        self._ends += 1
        if not self._registry.was_taken(slot_key(slot), epoch.lock_index, instance_id):
            self._outages.append(f"{name} let go of slot {slot}, whose lock nobody else ever had")

    def judge(self, verdict: Verdict, slot_count: int) -> None:
        """Say what was seen, and whether each slot has one owner in the end."""
        verdict.judged[Guarantee.EPOCHS] += self._frames + slot_count
        verdict.judged[Guarantee.REGISTRY] += self._ends + self._registry.acquisitions
        for slot in range(slot_count):
            owners = {name: gateway.slots.epochs[slot] for name, gateway in self.living.items() if slot in gateway.slots.epochs}
            lock = self._registry.lock_of(slot_key(slot))
            if lock is None or list(owners.values()) != [lock.epoch]:
                self._epochs.append(f"slot {slot} ended with the owners {owners} and the lock {lock}")
        for story in self._epochs:
            verdict.blame(Fault.MISPLACED, Guarantee.EPOCHS, story)
        for story in (*self._outages, *self._registry.stolen):
            verdict.blame(Fault.MISPLACED, Guarantee.REGISTRY, story)


class _Watched(dict[int, Epoch]):
    """A gateway's epochs that tell of each that goes."""

    def __init__(self, judge: OwnershipJudge, name: str, instance_id: str) -> None:
        super().__init__()
        self._tell = judge.on_end
        self._name = name
        self._instance_id = instance_id

    def __delitem__(self, slot: int) -> None:
        epoch = self[slot]
        super().__delitem__(slot)
        self._tell(self._name, self._instance_id, slot, epoch)

    def pop(self, slot: int, *default: Any) -> Any:
        if slot not in self:
            return super().pop(slot, *default)
        epoch = self[slot]
        del self[slot]
        return epoch

    def clear(self) -> None:
        for slot in list(self):
            del self[slot]
