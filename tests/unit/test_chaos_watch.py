"""What a run notes beside what devices record, and which faults nobody may notice."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chassis.registry import Epoch, Holder, Instance
from parley.gateway.v1.gateway_service_pb2 import DeliverRequest, SlotEpochs
from parley.log.v1.records_pb2 import EventRecord
from parley_chaos.load import LoadStoppedError
from parley_chaos.notes import Notes, _Fingerprints, _taken
from parley_chaos.plan import Fault, Kind
from parley_chaos.watch import Watch, _is_outage, is_own_error
from parley_checker.guarantees import Guarantee
from parley_protocol.slots import fingerprint, slot_key, slot_of
from services.gateway.slots import Slots

COUNT = 16
SLOTS: Any = SimpleNamespace(count=COUNT, slot_of=lambda user: slot_of(user, COUNT))
HELD = {slot: Epoch("mine", slot) for slot in range(8)}
WHOLE = {slot: Epoch("mine", slot) for slot in range(COUNT)}


def taken(request: DeliverRequest, held: dict[int, Epoch], refused: set[int] = frozenset()) -> list[tuple[int, bool]]:  # type: ignore[assignment]
    return list(_taken(request, set(refused), held, SLOTS, _Fingerprints()))


def stamped(session: str, *slots: int) -> DeliverRequest:
    return DeliverRequest(epochs=[SlotEpochs(session_id=session, slots=slots, lock_indexes=slots)])


def test_slots_under_the_own_epoch_are_right_and_others_are_not() -> None:
    assert taken(stamped("mine", 1, 2), HELD) == [(1, True), (2, True)]
    assert taken(stamped("another's", 1), HELD) == [(1, False)]
    assert taken(stamped("mine", 9), HELD) == [(9, False)]


def test_what_was_refused_was_not_taken() -> None:
    assert taken(stamped("another's", 1), HELD, {1}) == []


def test_all_slots_at_once_are_right_under_their_fingerprint() -> None:
    request = DeliverRequest(all_slots=fingerprint(WHOLE))
    assert taken(request, WHOLE) == [(-1, True)]
    assert taken(request, {**WHOLE, 3: Epoch("mine", 99)}) == [(-1, False)]


def test_a_recipient_without_his_slots_epoch_is_wrong() -> None:
    request = DeliverRequest(events=[EventRecord(recipients=["alice"])])
    assert taken(request, WHOLE) == [(SLOTS.slot_of("alice"), False)]


def watch(tmp_path: Path) -> Watch:
    return Watch(cast(Any, SimpleNamespace(devices=[])), {}, tmp_path)


def test_notes_of_all_processes_are_judged(tmp_path: Path) -> None:
    good, bad = Notes(1, frames=10), Notes(2, frames=5, foreign=25, stories=["a story"] * 20)
    for notes in (good, bad):
        (tmp_path / f"{notes.pid}.json").write_text(json.dumps(asdict(notes)))
    verdict = watch(tmp_path).judge()
    assert verdict.judged[Guarantee.EPOCHS] == 15
    assert verdict.broken[Guarantee.EPOCHS] == 25
    assert not verdict.kept


async def test_no_answers_while_consul_is_away_break_g15(tmp_path: Path) -> None:
    async def stops(_seconds: float) -> None:
        raise LoadStoppedError("nobody has answers")

    judging = Watch(cast(Any, SimpleNamespace(devices=[], wait_flowing=stops)), {}, tmp_path)
    await judging.flow_meanwhile()
    assert judging.verdict.broken[Guarantee.REGISTRY] == 1


BOTH = ["gateway-1", "gateway-2"]
REST = Notes(1, slots=600, at_rest=True, among=BOTH)
OTHER_REST = Notes(2, slots=424, at_rest=True, among=BOTH)


@pytest.mark.parametrize(
    ("noted", "rest"),
    [
        ([REST, OTHER_REST], True),
        ([REST], False),  # one has noted nothing yet
        ([REST, replace(OTHER_REST, at_rest=False)], False),
        ([REST, replace(OTHER_REST, pid=3)], False),  # of its process before
        # Drained, and back: the one that has all slots has not heard of it yet, and nobody waits for anything by his own view.
        ([replace(REST, slots=1024, among=["gateway-1"]), replace(OTHER_REST, slots=0)], False),
        # The same, and the mark of its drain still lies there.
        ([replace(REST, slots=1024, among=["gateway-1"]), replace(OTHER_REST, slots=0, among=["gateway-1"])], False),
        ([replace(REST, slots=1024), replace(OTHER_REST, slots=0, among=["gateway-2"])], False),
    ],
)
def test_slots_rest_once_all_gateways_share_them_out_among_all(tmp_path: Path, noted: list[Notes], rest: bool) -> None:
    for notes in noted:
        (tmp_path / f"{notes.pid}.json").write_text(json.dumps(asdict(notes)))
    children = {"gateway-1": SimpleNamespace(pid=1), "gateway-2": SimpleNamespace(pid=2), "store-1": SimpleNamespace(pid=4)}
    assert Watch(cast(Any, SimpleNamespace(devices=[])), cast(Any, children), tmp_path)._slots_rest() is rest


def test_by_itself_a_gateway_is_at_rest_until_it_hears_of_another_and_then_slots_move() -> None:
    """So no single gateway's word for it will do: a drained one is back, and the other's view of the registry is late."""
    one, two = (Instance("gateway", name, f"{name}:1", f"{name}:2") for name in BOTH)
    first, second = (Slots(name, COUNT, settle_seconds=4.0, slots_per_second=1000.0) for name in BOTH)
    view = {slot_key(slot): Holder("gateway-1", Epoch("s1", 1)) for slot in range(COUNT)}
    for slots, session, instances in ((first, "s1", [one]), (second, "s2", [one, two])):
        slots.on_session(session, 0.0)
        slots.on_instances(instances, 0.0)
        slots.on_holders(view, 0.0)
    assert [slots.plan(10.0) for slots in (first, second)] == [([], [], math.inf)] * 2
    assert first.is_clear
    assert second.is_clear
    first.on_instances([one, two], 12.0)
    assert first.plan(16.0).release
    assert first.shared_among == set(BOTH)


@pytest.mark.parametrize(
    ("kind", "target", "outage"),
    [
        (Kind.STOP_ENGINE, "consul", True),
        (Kind.FORGET, "consul", True),
        (Kind.BLACKHOLE, "router-1-to-consul", True),
        (Kind.DELAY, "router-1-to-consul", False),  # slow is not away
        (Kind.BLACKHOLE, "gateway-1-to-consul", False),  # its slots go to others
        (Kind.STOP_ENGINE, "kafka", False),
    ],
)
def test_an_outage_is_consul_away_from_all_or_from_those_without_devices(kind: Kind, target: str, outage: bool) -> None:
    assert _is_outage(Fault(kind, target, 0.0, 1.0)) is outage


@pytest.mark.parametrize(
    ("line", "own"),
    [
        ("2026-11-25T02:28:55.523908Z [error    ] service.broke                  service=store", True),
        ("2026-11-25T02:28:55.523908Z [critical ] service.broke                  service=store", True),
        ("2026-11-25T02:28:55.523908Z [warning  ] store.batch_failed             error='[error] in it'", False),
        ("2026-11-25T02:28:55.523908Z [error    ] handler failed                 method=/a.b/c", True),
        ("2026-11-25T02:28:55.523908Z [error    ] ExecuteBatchError raised in core by servicer method [/a.b/c]", False),
        ("2026-11-25T02:28:55.523908Z [error    ] Task exception was never retrieved", False),
    ],
)
def test_only_what_a_service_says_is_its_error(line: str, own: bool) -> None:
    assert is_own_error(line) is own
