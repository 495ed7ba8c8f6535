"""Watermarks on their way into the log: merged for a moment, because only the last of a burst says anything."""

import asyncio
from typing import Final

from services.gateway.log_writer import LogWriter
from services.gateway.metrics import Metrics
from services.gateway.records import ack_record, of_no_device

_MERGE_SECONDS: Final = 0.04  # ticks may be that late; at 10 acks a second and device it saves little, in bursts nearly all
_AGAIN_SECONDS: Final = 0.5  # a partition that is closed or crowded mostly stays so for longer than a merge takes
_MAX_ENTRIES: Final = 100_000  # ~40 MB; beyond it watermarks are dropped, devices ack again at Sync


class AckMerger:
    """Holds the highest watermarks of each (user, conversation) until they are written together."""

    def __init__(self, writer: LogWriter, metrics: Metrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self._counts = metrics.counts
        self._held: dict[tuple[str, str], tuple[int, int, bytes]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, user_id: str, origin: bytes, conversation_id: str, delivered_seq: int, read_seq: int) -> None:
        """Take watermarks; `origin` are the encoded origin fields of the session that they came from."""
        key = (user_id, conversation_id)
        held = self._held.get(key)
        if held is not None:
            if held[2] != origin:  # from several devices: each of them has to be told of the others
                origin = of_no_device(origin)
            self._held[key] = (max(held[0], delivered_seq), max(held[1], read_seq), origin)
        elif len(self._held) < _MAX_ENTRIES:
            self._held[key] = (delivered_seq, read_seq, origin)
        else:
            self._metrics.acks_dropped.inc()
            return
        self._counts.acks_taken += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_MERGE_SECONDS, self.flush)

    def close(self) -> None:
        """Write no more: devices ack again at Sync."""
        if self._timer is not None:
            self._timer.cancel()

    def flush(self) -> None:
        """Write all now. What a crowded or closed partition does not take is held, and merged, until it does: messages go first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, {}
        written = 0
        for place, (delivered_seq, read_seq, origin) in held.items():
            conversation_id = place[1]
            key = conversation_id.encode()
            lane = self._writer.lane_of(key)
            if lane.crowded or lane.offer(key, ack_record(origin, conversation_id, delivered_seq, read_seq)):
                self._held[place] = (delivered_seq, read_seq, origin)  # a device that stays connected would not say it again
            else:
                written += 1
        self._metrics.ack_records.inc(written)
        if self._held:
            self._timer = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self.flush)
