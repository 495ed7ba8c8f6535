"""What a command reads is told."""

import pytest

from parley.api.v1.commands_pb2 import SendMessage
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley_protocol.ids import direct_conversation_id
from services.store import decide
from tests.mutation import replace
from tests.unit.store_scene import Scene, command_record


def check_that_what_a_command_reads_is_told() -> None:
    scene = Scene(direct_conversation_id("alice", "bob"))
    scene.apply(command_record("alice", SendMessage(body=b"a"), number=1, to="bob"))
    effect = scene.apply(command_record("bob", SendMessage(body=b"b"), number=2, to="alice", seen_seq=1))
    assert effect is not None
    assert [receipt.read_seq for receipt in ServerBatch.FromString(effect.shared).receipts] == [1]
    assert [change.read_seq for change in ServerBatch.FromString(effect.actor).inbox_changes] == [1]


def test_what_a_command_reads_is_told_to_the_others_and_to_the_own_devices():
    check_that_what_a_command_reads_is_told()


def test_planted_watermarks_that_nobody_is_told_of_are_found(monkeypatch):
    """No simulation shows it any more: digests mend it before anybody looks."""
    replace(monkeypatch, decide, "_accept", "if saw or pushed:", "if pushed:")
    with pytest.raises(AssertionError):
        check_that_what_a_command_reads_is_told()
