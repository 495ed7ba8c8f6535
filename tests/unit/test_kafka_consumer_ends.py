"""A consumer that is told to end ends, whatever the library under it makes of that."""

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from chassis import eventlog_kafka_consumer
from chassis.eventlog_kafka_connection import KafkaConnection
from chassis.eventlog_kafka_consumer import KafkaConsumer
from chassis.eventlog_kafka_metrics import KafkaMetrics

SOON_SECONDS = 5.0


class Stubborn:
    """Of an AIOKafkaConsumer what its owner touches; it starts, gives nothing, and does not end well."""

    _coordinator = _fetcher = None

    def __init__(self, *, stops: str, closes: str) -> None:
        self.started = asyncio.Event()
        self._stops = stops
        self._closes = closes
        self._client = SimpleNamespace(_sync_task=None, close=self._close)

    async def start(self) -> None:
        self.started.set()

    async def getmany(self, timeout_ms: int) -> dict[Any, Any]:
        return await asyncio.Event().wait() or {}

    async def stop(self) -> None:
        await self._end(self._stops)

    async def _close(self) -> None:
        await self._end(self._closes)

    async def _end(self, how: str) -> None:
        if how == "hangs":
            await asyncio.Event().wait()
        if how == "fails":
            raise RuntimeError("handler is closed")


@pytest.mark.parametrize(("stops", "closes"), [("fails", "well"), ("fails", "fails"), ("hangs", "fails"), ("hangs", "hangs")])
async def test_a_consumer_that_is_told_to_end_ends_though_it_can_not_be_closed(
    stops: str, closes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eventlog_kafka_consumer, "_CLOSE_SECONDS", 0.05)
    stubborn = Stubborn(stops=stops, closes=closes)
    monkeypatch.setattr(KafkaConsumer, "_make", lambda self: stubborn)
    connection = KafkaConnection("127.0.0.1:1")
    consumer = KafkaConsumer(connection, "topic", "group", 1, rng=random.Random(0), metrics=KafkaMetrics(CollectorRegistry()))
    running = asyncio.create_task(consumer.run())
    await stubborn.started.wait()
    running.cancel()
    await asyncio.wait([running], timeout=SOON_SECONDS)
    ended = running.cancelled()
    running.cancel()
    assert ended
