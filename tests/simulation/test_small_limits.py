"""Limits so small that three users and some hundred records walk the paths that large groups and busy senders take."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from conftest import SEEDS_MAX

from parley_simulation import world
from parley_simulation.devices import SimulatedDevice
from parley_simulation.processes import BrokenError
from parley_simulation.store_judge import Tables
from parley_simulation.store_world import run_seed
from parley_simulation.world import run_world
from services.router.recipients import Group
from services.store import decide, loaded, memory, rows, seen_keys, state
from services.store.reads import conversation_of
from services.store.seen_keys import SeenKeys
from tests.simulation.mutants import likely_first

SEEDS = range(10)


def views_as_the_states_say(devices: Iterable[SimulatedDevice], tables: Tables) -> Iterator[str]:
    """G7, G12: what every device shows is what its user sees of the states: inbox rows of large conversations say nothing."""
    cells: dict[str, list[tuple[bytes, bytes]]] = {}
    for (table, partition, key), (_, value) in tables.items():
        if table == rows.STATE:
            cells.setdefault(partition, []).append((key, value))
    states = {name: rows.state_of(name, found) for name, found in cells.items()}
    for one in devices:
        user, device_id = one.device
        assert one.client is not None
        shown = {v.conversation_id: v for v in one.client.conversations()}
        theirs = {name for name, conversation in states.items() if user in conversation.members}
        if shown.keys() != theirs:
            yield f"{device_id} knows {sorted(shown)}, its user is or was a member of {sorted(theirs)}"
        for name in sorted(shown.keys() & theirs):
            view = shown[name]
            v = conversation_of(states[name], user)
            marks = view.delivered_seq, view.read_seq, view.unread_count
            told = view.held_seq, view.head_seq, *marks, view.title, view.member_count, view.role
            marks = v.delivered_seq, v.read_seq, v.unread_count
            true = v.head_seq, v.head_seq, *marks, v.title, v.member_count, v.role
            if told != true:
                yield f"{device_id} shows of {name} (held, head, delivered, read, unread, title, members, role) {told}, not {true}"


@pytest.fixture
def large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipients are looked up by the router, receipts are not pushed, and three members make a group large."""
    monkeypatch.setattr(decide, "NAMED_RECIPIENTS_MAX", 1)
    monkeypatch.setattr(decide, "RECEIPTS_MAX_MEMBERS", 2)
    monkeypatch.setattr(state, "LARGE_ABOVE", 2)
    settings = world.GATEWAY_SETTINGS.model_copy(update={"group_members": 3})
    monkeypatch.setattr(world, "GATEWAY_SETTINGS", settings)
    monkeypatch.setattr(world, "stories_of_views", views_as_the_states_say)


@pytest.mark.usefixtures("large_groups")
@pytest.mark.parametrize("seed", SEEDS)
def test_large_groups_keep_the_contract(seed):
    run_world(seed)


def forget_membership(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Group, "apply", lambda *args: None)


def send_to_the_present_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Group, "recipients", lambda self, seq: self._present)


@pytest.mark.usefixtures("large_groups")
@pytest.mark.parametrize(("break_it", "likely"), [(forget_membership, 11), (send_to_the_present_ones, 16)])
def test_a_broken_rule_of_large_groups_is_found(break_it, likely, monkeypatch):
    break_it(monkeypatch)
    with pytest.raises(BrokenError):
        run_all(run_world, likely)


def run_all(run: Callable[[int], Any], likely: int | None = None) -> None:
    for seed in likely_first(SEEDS_MAX, likely):
        run(seed)


@pytest.fixture(params=[1, 10_000], ids=["full-at-once", "growing"])
def small_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store keeps one answer a sender and one count a conversation; its filters are full at once, or grow by the key."""
    monkeypatch.setattr(loaded, "_FATES_KEPT", 1)
    monkeypatch.setattr(loaded, "_COUNTS_KEPT", 1)
    monkeypatch.setattr(memory, "_KEYS_LOADED_MAX", request.param)
    monkeypatch.setattr(seen_keys, "_FIRST_LAYER_KEYS", 1)
    monkeypatch.setattr(seen_keys, "_LAYERS_MAX", 1 if request.param == 1 else 6)


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_memory_keeps_the_contract(seed):
    run_seed(seed)


@pytest.mark.usefixtures("small_memory")
def test_a_filter_that_says_no_to_what_it_holds_is_found(monkeypatch):
    monkeypatch.setattr(SeenKeys, "maybe", lambda self, hashed: False)
    with pytest.raises(BrokenError):
        run_all(run_seed)
