"""The apply loop: records in log order, in batches, in two phases.

A batch is loaded for, decided, and written: first timeline, dedupe and inbox rows, then the conversations' states; then the events
are published; then the offset may pass. In that order: a crash anywhere replays to the same rows, and readers take heads from
states.
"""

import asyncio
import random
from typing import Final

import structlog

from chassis.backoff import Backoff
from chassis.clock import Clock
from chassis.errors import Internal, status_of
from chassis.eventlog import EventLog, LogBatch, LogConsumer, LogEntry, LogRecord, LogUnavailableError
from chassis.tasks import Tasks
from chassis.timeline import Timeline, TimelineUnavailableError
from parley.log.v1.records_pb2 import CommandRecord, DeadLetter
from parley.store.v1.rows_pb2 import StopRow
from parley_protocol.frames import OUTCOME_TAG, field
from parley_protocol.topics import COMMANDS, DEAD_LETTERS, EVENTS
from services.store import encoding, rows
from services.store.actions import UndecidableError
from services.store.config import StoreSettings
from services.store.decide import Effect, NewerRulesError, decide
from services.store.loaded import Decodable, item_of
from services.store.memory import PartitionMemory
from services.store.metrics import StoreMetrics
from services.store.recent import RecentEvents
from services.store.state import NewerEpochError, Position
from services.store.stops import APPLIED, SKIPPED, STOPPED, around_skips, load_stops, read_stop, write_stop
from services.store.work import Work, event_batches, event_record

GROUP = "store"
_REASON_CHARS: Final = 1_000  # of why a partition stopped, as the tables keep it
_LETTER_BYTES: Final = 4 * 1024 * 1024  # of a dead letter's record; commands are far below
_LETTER_KEY_BYTES: Final = 64 * 1024
_POLLING = -1  # counts failures of polling, beside those of partitions
_ENGINE_AWAY: Final = (LogUnavailableError, TimelineUnavailableError)

_log = structlog.get_logger()


class _Stopped(Exception):
    """A record that nobody here can go past; its cause is what came of trying."""

    def __init__(self, record: LogRecord, cause: Exception) -> None:
        super().__init__(record.offset)
        self.record = record
        self.cause = cause


class Applier:
    """Applies the partitions that the log hands out, each in order, several at once."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        log: EventLog,
        timeline: Timeline,
        recent: RecentEvents,
        clock: Clock,
        metrics: StoreMetrics,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._log = log
        self._timeline = timeline
        self._recent = recent
        self._clock = clock
        self._metrics = metrics
        self._memories: dict[int, PartitionMemory] = {}
        self.stopped: dict[int, str] = {}  # partitions that need a person, and why
        self._backoff = Backoff(settings.retry_min_seconds, settings.retry_max_seconds, rng)

    async def run(self, tasks: Tasks) -> None:
        """Apply until cancelled. A batch under way when it is cancelled is applied again by whoever comes next."""
        async with self._log.open_consumer(COMMANDS, GROUP) as consumer:
            while True:
                try:
                    batch = await consumer.poll(self._settings.poll_records)
                except LogUnavailableError as error:
                    delay = self._backoff.failed(_POLLING)
                    _log.warning("store.poll_failed", error=str(error), retry_in=delay)
                    await asyncio.sleep(delay)
                    continue
                self._backoff.succeeded(_POLLING)
                tasks.spawn(self._process(consumer, batch), name=f"store.apply.{batch.partition}")

    async def _process(self, consumer: LogConsumer, batch: LogBatch) -> None:
        partition = batch.partition
        try:
            await self._apply_or_stop(batch)
        except _ENGINE_AWAY as error:
            delay = self._backoff.failed(partition)
            self._metrics.retries.inc()
            offset = batch.records[0].offset
            _log.warning("store.batch_failed", partition=partition, offset=offset, error=str(error), retry_in=delay)
            await asyncio.sleep(delay)
            consumer.retry(batch)
        except _Stopped as stopped:
            await self._stay_stopped(partition, stopped)
            consumer.retry(batch)
        else:
            self._backoff.succeeded(partition)
            consumer.done(batch)

    async def _apply_or_stop(self, batch: LogBatch) -> None:
        """Apply a batch. Raises _Stopped: all before that record is applied, and nothing from it on."""
        try:
            await self.apply(batch)
        except _ENGINE_AWAY:
            raise
        except Exception as error:  # our bug: going on would answer records out of order, ending would take the readers along
            if len(batch.records) == 1:
                if await self._is_applied(batch, error):
                    return
                raise _Stopped(batch.records[0], error) from error
            _log.warning("store.batch_taken_apart", partition=batch.partition, offset=batch.records[0].offset, exc_info=error)
            for record in batch.records:
                await self._apply_or_stop(LogBatch(batch.partition, [record]))

    async def _is_applied(self, batch: LogBatch, error: Exception) -> bool:
        """Tell whether a mended store has done all of a record that we can't take: its rows are written, its events told."""
        position = Position(self._log.epoch, batch.partition, batch.records[0].offset)
        if isinstance(error, NewerEpochError) or (row := await read_stop(self._timeline, position)) is None or row.stage != APPLIED:
            return False
        _log.warning("store.record_passed", position="/".join(map(str, position)), error=str(error))
        return True

    async def _stay_stopped(self, partition: int, stopped: _Stopped) -> None:
        """Leave the partition held: nobody here goes past a record that was not understood, until a person has it skipped or a
        mended store, which has the partition now, has applied it.
        """
        position, error = Position(self._log.epoch, partition, stopped.record.offset), stopped.cause
        foreseen = isinstance(error, NewerEpochError | NewerRulesError)
        why = str(error) if foreseen else f"it could not be applied, which is a bug: {type(error).__name__}: {error}"
        name = "/".join(map(str, position))
        _log.error("store.partition_stopped", position=name, why=why, exc_info=None if foreseen else error)
        self._metrics.stopped.labels(str(partition)).set(1)
        self.stopped[partition] = f"partition {partition} stopped at record {name}: {why}"
        if isinstance(error, NewerEpochError):  # no matter of one record: this process serves a log that is over
            await asyncio.Event().wait()
        written = False
        while True:
            try:
                if not written:
                    await write_stop(self._timeline, position, STOPPED, why[:_REASON_CHARS])
                    written = True
                    _log.warning("store.waits_for_skip", position=name, command=f"parley deadletter skip {name}")
                row = await read_stop(self._timeline, position)
                if row is not None and row.stage != STOPPED:
                    break
            except TimelineUnavailableError as away:
                _log.warning("store.skip_not_seen", position=name, error=str(away))
            await asyncio.sleep(self._settings.skip_look_seconds)
        happened = "store.record_skipped" if row.stage == SKIPPED else "store.record_applied_elsewhere"
        _log.warning(happened, position=name, reason=row.reason)
        self._metrics.stopped.labels(str(partition)).set(0)
        del self.stopped[partition]

    async def apply(self, batch: LogBatch) -> None:
        """Apply one batch wholly: on return its rows are written and its events published. What it raises, it forgets first."""
        memory = self._memory(batch.partition)
        try:
            if not memory.follows(batch.records[0].offset):
                memory.stops = await load_stops(self._timeline, self._log.epoch, batch.partition)
            stops = memory.stops
            for piece in around_skips(batch, stops) if stops else (batch,):
                if isinstance(piece, LogRecord):
                    await self._skip(memory, batch.partition, piece, stops[piece.offset].reason)
                else:
                    await self._apply(memory, piece)
                    await self._mend(piece, stops)
        except BaseException:
            memory.drop()
            raise

    async def _skip(self, memory: PartitionMemory, partition: int, raw: LogRecord, reason: str) -> None:
        """Make a record a dead letter without looking at it, and tell its device if it can be told."""
        reason = f"skipped: {reason}"
        position = Position(self._log.epoch, partition, raw.offset)
        await self._log.append(DEAD_LETTERS, partition, [_dead_letter(position, raw.key, raw.value, reason)])
        answer = _answer_to_skipped(raw, reason)
        if answer:
            await self._log.append(EVENTS, partition, event_batches([answer], self._settings.publish_bytes))
        self._metrics.dead_lettered.inc()
        memory.begin(raw.offset)
        memory.finish(raw.offset + 1)

    async def _mend(self, batch: LogBatch, stops: dict[int, StopRow]) -> None:
        """Say of records that stopped a store before that they are applied now: it is too late to skip them."""
        for record in batch.records if stops else ():
            stop = stops.get(record.offset)
            if stop is not None and stop.stage == STOPPED:
                position = Position(self._log.epoch, batch.partition, record.offset)
                await write_stop(self._timeline, position, APPLIED, stop.reason)
                stops[record.offset] = StopRow(stage=APPLIED, reason=stop.reason)

    def _memory(self, partition: int) -> PartitionMemory:
        memory = self._memories.get(partition)
        if memory is None:
            memory = self._memories[partition] = PartitionMemory(
                self._timeline,
                epoch=self._log.epoch,
                partition=partition,
                bucket_bits=self._settings.bucket_bits,
                max_conversations=self._settings.max_conversations,
            )
        return memory

    async def _apply(self, memory: PartitionMemory, batch: LogBatch) -> None:
        started = self._clock.monotonic()
        memory.begin(batch.records[0].offset)
        letters: list[LogEntry] = []
        decodable = self._decode(batch, letters)
        await memory.load(decodable)
        loaded_at = self._clock.monotonic()

        work = Work(self._settings.bucket_bits)
        for item in decodable:
            self._decide(memory, batch.partition, item, work, letters)
        first, second = work.rows()
        decided_at = self._clock.monotonic()
        for piece in rows.pieces(first):
            await self._timeline.write(piece)
        rows_at = self._clock.monotonic()
        if letters:  # before the states, which would hide at a second try that these records were undecidable
            await self._log.append(DEAD_LETTERS, batch.partition, letters)
        if second:
            await self._timeline.write(second)
        states_at = self._clock.monotonic()
        for conversation_id, seq, event in work.events:
            self._recent.add(conversation_id, seq, event)
        if work.records:
            await self._log.append(EVENTS, batch.partition, event_batches(work.records, self._settings.publish_bytes))
        memory.settle(decodable)
        memory.finish(batch.records[-1].offset + 1)

        metrics = self._metrics
        metrics.accepted.inc(work.accepted)
        metrics.rejected.inc(work.rejected)
        metrics.acked.inc(work.acked)
        metrics.answered_again.inc(work.answered_again)
        metrics.batch_records.observe(len(batch.records))
        metrics.load.observe(loaded_at - started)
        metrics.decide.observe(decided_at - loaded_at)
        metrics.rows.observe(rows_at - decided_at)
        metrics.states.observe(states_at - rows_at)
        metrics.publish.observe(self._clock.monotonic() - states_at)

    def _decode(self, batch: LogBatch, letters: list[LogEntry]) -> list[Decodable]:
        decodable = []
        for raw in batch.records:
            item = item_of(raw)
            if item is not None:
                decodable.append(item)
                continue
            position = Position(self._log.epoch, batch.partition, raw.offset)
            letters.append(_dead_letter(position, raw.key, raw.value, "the record does not parse, or not under this key"))
            self._metrics.dead_lettered.inc()
        return decodable

    def _decide(self, memory: PartitionMemory, partition: int, item: Decodable, work: Work, letters: list[LogEntry]) -> None:
        record = item.record
        loaded = memory[record.conversation_id]
        position = Position(self._log.epoch, partition, item.offset)
        try:
            effect = decide(loaded.state, record, position, item.time_ms, loaded.known(item))
        except UndecidableError as error:
            letters.append(_dead_letter(position, record.conversation_id.encode(), record.SerializeToString(), str(error)))
            self._metrics.dead_lettered.inc()
            effect = _refused_for_good(record, str(error))
        if effect is None:
            self._metrics.without_effect.inc()
            return
        work.add(loaded, item, effect)


def _refused_for_good(record: CommandRecord, why: str) -> Effect | None:
    """Tell the device of a command that lies in the dead letters."""
    if record.WhichOneof("body") != "command":
        return None
    status = status_of(Internal("DEAD_LETTERED", f"the command could not be decided: {why}")).SerializeToString()
    return Effect(own=field(OUTCOME_TAG, encoding.rejected(record.command.request_id, status)))


def _answer_to_skipped(raw: LogRecord, reason: str) -> bytes:
    """Return what tells the device, empty if nothing can: what nobody could apply may be anything."""
    try:
        record = CommandRecord.FromString(raw.value)
        effect = _refused_for_good(record, reason)
        return b"" if effect is None else event_record(record, effect)
    except Exception as error:
        _log.warning("store.skip_not_answered", offset=raw.offset, error=str(error))
        return b""


def _dead_letter(position: Position, key: bytes, value: bytes, reason: str) -> LogEntry:
    if len(value) > _LETTER_BYTES:  # whole it could be too large for the log itself, with what is around it
        value, reason = value[:_LETTER_BYTES], f"{reason} ({len(value)} bytes, cut here)"
    if len(key) > _LETTER_KEY_BYTES:
        key, reason = key[:_LETTER_KEY_BYTES], f"{reason} (a key of {len(key)} bytes, cut here)"
    letter = DeadLetter(
        log_epoch=position.epoch, partition=position.partition, offset=position.offset, key=key, value=value, reason=reason
    )
    return LogEntry(key, letter.SerializeToString())
