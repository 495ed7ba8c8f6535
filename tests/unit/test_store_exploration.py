"""Two live workers, one partition, three commands: every interleaving, with a crash or an engine's error at every step."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import structlog

from parley.api.v1.commands_pb2 import AddMembers, CreateGroup, Leave, RemoveMember, SendMessage
from parley.log.v1.records_pb2 import CommandRecord
from services.store import decide, work
from services.store.apply import Applier
from services.store.memory import PartitionMemory
from services.store.state import ConversationState, Member
from tests.mutation import replace
from tests.unit.store_exploration import Explorer
from tests.unit.store_scene import T0, ack_record, command_record
from tests.unit.store_stepper import BrokenError

HOUR_MS = 3_600_000
# Faults on one way through a scenario, whatever it says below: 1 everywhere is a million states and more, and `make explore`.
FAULTS = os.environ.get("EXPLORE_FAULTS", "")


def say(user: str, number: int, to: str = "bob", seen_seq: int = 0) -> CommandRecord:
    return command_record(user, SendMessage(body=b"m%d" % number), number=number, to=to, seen_seq=seen_seq)


CREATE = command_record("alice", CreateGroup(title="t", member_user_ids=["bob"]), number=1)
GROUP = CREATE.conversation_id


def in_group(user: str, action: object, number: int) -> CommandRecord:
    return command_record(user, action, number=number, conversation=GROUP)


def undecidable() -> CommandRecord:
    record = say("alice", 9)
    record.command.send_message = b"\x0a\xff"
    return record


class Scenario(NamedTuple):
    """Three records, on what earlier ones left."""

    given: list[CommandRecord]
    records: list[tuple[CommandRecord, int]]  # with their log times
    answers: list[object]  # to their requests
    faults: int  # on one way, as far as a second or two allows; two workers in each other's way there are always


SCENARIOS: dict[str, Scenario] = {
    "a message, its resend while log time jumps back, and the next": Scenario(
        [], [(say("alice", 1), T0), (say("alice", 1), T0 - HOUR_MS), (say("alice", 2), T0)], [1, 1, 2], 1
    ),
    "an answer between two messages, with what it has read": Scenario(
        [], [(say("alice", 1), T0), (say("bob", 2, "alice", seen_seq=1), T0 + 1), (say("alice", 3), T0 + 2)], [1, 2, 3], 0
    ),
    "a removal between two messages of a group": Scenario(
        [CREATE],
        [
            (in_group("alice", SendMessage(body=b"a"), 2), T0),
            (in_group("alice", RemoveMember(user_id="bob"), 3), T0),
            (in_group("alice", SendMessage(body=b"b"), 4), T0),
        ],
        [2, 3, 4],
        0,
    ),
    "a refusal that would be none after what comes next": Scenario(
        [CREATE],
        [
            (in_group("carol", SendMessage(body=b"a"), 2), T0),
            (in_group("alice", AddMembers(user_ids=["carol"]), 3), T0),
            (in_group("carol", SendMessage(body=b"a"), 2), T0),
        ],
        ["CONVERSATION_NOT_FOUND", 2, "CONVERSATION_NOT_FOUND"],
        1,
    ),
    "watermarks between a message and a leave": Scenario(
        [CREATE],
        [
            (in_group("alice", SendMessage(body=b"a"), 2), T0),
            (ack_record("bob", GROUP, delivered=2, read=2), T0),
            (in_group("bob", Leave(), 3), T0),
        ],
        [2, None, 3],
        0,
    ),
    "what can never be decided between two messages": Scenario(
        [], [(say("alice", 1), T0), (undecidable(), T0), (say("alice", 2), T0)], [1, "DEAD_LETTERED", 2], 0
    ),
    "two conversations": Scenario([], [(say("alice", 1), T0), (say("alice", 2, "carol"), T0), (say("alice", 3), T0)], [1, 1, 2], 0),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of batches fail on purpose: what the worker logs of it is not for anybody."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)
    yield
    structlog.configure(**before)


def _drop(*_: object) -> object:
    raise structlog.DropEvent


def explorer(name: str, faults_max: int) -> Explorer:
    return Explorer(SCENARIOS[name].given, SCENARIOS[name].records, faults_max=faults_max)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_contract_is_kept_in_every_state(name):
    scenario = SCENARIOS[name]
    faults_max = int(FAULTS or scenario.faults)
    one = explorer(name, faults_max)
    told = [next((fact[2] for fact in facts if fact[0] == "outcome"), None) for facts in one.contract.told[len(scenario.given) :]]
    assert told == scenario.answers, "what the log comes to is what it should"
    explored = one.explore()
    assert explored.states > 10_000, explored
    always = {"polls", "reads", "lands a group of rows", "appends", "commits", "regains its partition"}
    faults = {
        "fails to read",
        "fails to write",
        "fails to append",
        "crashes at a read",
        "crashes at a write",
        "crashes at an append",
    }
    wanted = always | ({*faults, "crashes between batches", "what was late lands"} if faults_max else set())
    assert {what for what in wanted if explored.steps[what] < 100} == set(), explored


def keep_memory_over_a_jump(patch: pytest.MonkeyPatch) -> None:
    replace(patch, PartitionMemory, "begin", "if offset != self._next_offset:", "if self._next_offset is None:")


def keep_memory_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    replace(patch, Applier, "apply", "memory.drop()", "pass")


def write_states_with_phase_1(patch: pytest.MonkeyPatch) -> None:
    replace(patch, work.Work, "rows", "return first, second", "return first + second, []")


def write_states_first(patch: pytest.MonkeyPatch) -> None:
    replace(patch, work.Work, "rows", "return first, second", "return second, first")


def commit_before_the_write(patch: pytest.MonkeyPatch) -> None:
    replace(patch, Applier, "_process", "await self._apply_or_stop(batch)", "consumer.done(batch); await self.apply(batch)")


def take_the_own_dedupe_row_for_another(patch: pytest.MonkeyPatch) -> None:
    replace(patch, decide, "_decide_command", "fate.position < position", "fate.position <= position")


def leave_the_log_its_time(patch: pytest.MonkeyPatch) -> None:
    replace(patch, ConversationState, "next_stamp", "max(self.stamp + 1, log_ms * 1000)", "log_ms * 1000")


def decide_again_what_is_applied(patch: pytest.MonkeyPatch) -> None:
    replace(patch, ConversationState, "has_applied", "position.offset <= self.applied.offset", "False")


def say_nothing_again(patch: pytest.MonkeyPatch) -> None:
    replace(patch, decide, "_decide_command", "return _again(state, record, fate, known)", "return None")


def say_it_again_to_those_who_are_there_now(patch: pytest.MonkeyPatch) -> None:
    replace(patch, Member, "sees", "last == 0 or seq <= last", "last == 0")


def forget_refusals(patch: pytest.MonkeyPatch) -> None:
    replace(patch, decide, "_reject", "effect.fate = Fate(position, log_ms, digest, 0, 0, status)", "pass")


def bury_nothing_where_states_are_written(patch: pytest.MonkeyPatch) -> None:
    replace(patch, Applier, "_apply", "if letters:", "if letters and not second:")


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (keep_memory_over_a_jump, "an answer between two messages, with what it has read"),
        (keep_memory_after_a_failure, "an answer between two messages, with what it has read"),
        (write_states_with_phase_1, "a message, its resend while log time jumps back, and the next"),
        (write_states_first, "two conversations"),
        (commit_before_the_write, "two conversations"),
        (take_the_own_dedupe_row_for_another, "a message, its resend while log time jumps back, and the next"),
        (leave_the_log_its_time, "a message, its resend while log time jumps back, and the next"),
        (decide_again_what_is_applied, "an answer between two messages, with what it has read"),
        (say_nothing_again, "two conversations"),
        (say_it_again_to_those_who_are_there_now, "a removal between two messages of a group"),
        (forget_refusals, "a refusal that would be none after what comes next"),
        (bury_nothing_where_states_are_written, "what can never be decided between two messages"),
    ],
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch):
    plant(monkeypatch)
    with pytest.raises((BrokenError, AssertionError)):
        explorer(name, 1 if plant is keep_memory_after_a_failure else 0).explore()
