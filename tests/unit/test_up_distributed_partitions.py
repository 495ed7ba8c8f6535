"""How many partitions `parley up --distributed` gives its log."""

import pytest

from chassis.eventlog import LogUnavailableError
from chassis.eventlog_kafka_topics import MissingTopicError, UnreadyTopicError
from parley_cli import up_distributed
from parley_protocol.topics import COMMANDS


def asked(monkeypatch: pytest.MonkeyPatch, answer: int | Exception) -> int:
    async def partitions_made(connection: object, topic: str, *, epoch: int, prefix: str, seconds: float) -> int:
        assert (topic, epoch, prefix) == (COMMANDS, 3, "mine-")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(up_distributed, "partitions_made", partitions_made)
    environ = {"PARLEY_KAFKA_SERVERS": "127.0.0.1:1", "PARLEY_KAFKA_LOG_EPOCH": "3", "PARLEY_KAFKA_PREFIX": "mine-"}
    return up_distributed._partitions(environ, workers=2)


def test_a_folder_keeps_what_its_log_was_made_with(monkeypatch):
    assert asked(monkeypatch, 8) == 8


def test_a_new_log_gets_one_for_each_worker(monkeypatch):
    assert asked(monkeypatch, MissingTopicError("none")) == 2


def test_a_log_that_does_not_answer_is_not_taken_for_a_new_one(monkeypatch):
    for error in LogUnavailableError("away"), UnreadyTopicError("away"):
        with pytest.raises(LogUnavailableError, match="away"):
            asked(monkeypatch, error)
