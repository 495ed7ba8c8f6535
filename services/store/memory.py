"""What a partition's worker keeps in memory, and how it loads what it lacks.

Valid only while positions are consecutive: when the next record is not the last decided one + 1, or anything failed, all of it is
dropped before deciding. That needs no word from the log about rebalances, and holds for zombies.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from chassis.timeline import Point, Timeline
from parley.api.v1.events_pb2 import Event
from parley.store.v1.rows_pb2 import StopRow
from services.store import rows
from services.store.decide import Fate, counts, needs_count, needs_first_event
from services.store.loaded import Decodable, Loaded, Sender
from services.store.seen_keys import SeenKeys, key_hash
from services.store.state import Position

_KEYS_LOADED_MAX = 5000  # a sender with more requests in a week is looked up request by request


class PartitionMemory:
    """The conversations of one partition that were active lately."""

    def __init__(self, timeline: Timeline, *, epoch: int, partition: int, bucket_bits: int, max_conversations: int) -> None:
        self._timeline = timeline
        self._epoch = epoch
        self._partition = partition
        self._bucket_bits = bucket_bits
        self._max_conversations = max_conversations
        self._conversations: OrderedDict[str, Loaded] = OrderedDict()
        self._next_offset: int | None = None
        self.stops: dict[int, StopRow] = {}  # by offset; read anew by who applies when nothing else is known either

    def follows(self, offset: int) -> bool:
        """Tell whether a batch that begins here goes on where the last one ended: else nothing that is known may be used."""
        return offset == self._next_offset

    def begin(self, offset: int) -> None:
        """Start a batch: keep what is known only if it follows the last one."""
        if offset != self._next_offset:
            self.drop()

    def drop(self) -> None:
        """Forget everything."""
        self._conversations.clear()
        self._next_offset = None

    def finish(self, next_offset: int) -> None:
        """End a batch whose rows are written: trim what it left behind."""
        self._next_offset = next_offset
        while len(self._conversations) > self._max_conversations:
            self._conversations.popitem(last=False)

    def __getitem__(self, conversation_id: str) -> Loaded:
        return self._conversations[conversation_id]

    async def load(self, batch: Sequence[Decodable]) -> None:
        """Read what deciding this batch may ask for, each kind in one grouped read."""
        await self._load_states(batch)
        await self._load_senders(batch)
        await self._load_fates(batch)
        await self._load_events(batch)

    async def _load_states(self, batch: Sequence[Decodable]) -> None:
        missing: dict[str, None] = {}
        for item in batch:
            conversation_id = item.record.conversation_id
            if conversation_id in self._conversations:
                self._conversations.move_to_end(conversation_id)
            else:
                missing[conversation_id] = None
        if missing:
            cells = await self._timeline.read_partitions(rows.STATE, list(missing))
            for conversation_id in missing:
                state = rows.state_of(conversation_id, cells.get(conversation_id, ()))
                self._conversations[conversation_id] = Loaded(state)

    async def _load_senders(self, batch: Sequence[Decodable]) -> None:
        stale: dict[tuple[str, str], dict[str, None]] = {}
        for item in batch:
            if item.key:
                place = (item.record.conversation_id, item.record.user_id)
                sender = self._conversations[place[0]].senders.get(place[1])
                if sender is None or not sender.from_ms <= item.time_ms < sender.until_ms:
                    stale[place] = {}
        if not stale:
            return
        times: dict[tuple[str, str], int] = {}
        for item in batch:  # all of the batch: weeks may lie between two of its records
            place = (item.record.conversation_id, item.record.user_id)
            if item.key and place in stale:
                stale[place].update(dict.fromkeys(rows.sender_partitions(*place, item.time_ms)))
                times[place] = item.time_ms
        wanted = [partition for group in stale.values() for partition in group]
        cells = await self._timeline.read_partitions(rows.DEDUPE, wanted, limit=_KEYS_LOADED_MAX + 1)
        for place, group in stale.items():
            seen = SeenKeys()
            for partition in group:
                found = cells.get(partition, ())
                if len(found) > _KEYS_LOADED_MAX:
                    seen.full = True
                    break
                for cell in found:
                    seen.add(key_hash(cell.key))
            senders = self._conversations[place[0]].senders
            sender = senders.get(place[1])
            fates = sender.fates if sender is not None else {}
            senders[place[1]] = Sender(seen, *rows.sender_span(times[place]), fates)

    async def _load_fates(self, batch: Sequence[Decodable]) -> None:
        asked: list[tuple[Loaded, Decodable, list[Point]]] = []
        for item in batch:
            record = item.record
            if not item.key:
                continue
            loaded = self._conversations[record.conversation_id]
            if loaded.fate_of(item) is None and loaded.senders[record.user_id].seen.maybe(item.key_hash):
                places = rows.dedupe_partitions(record.conversation_id, record.user_id, item.time_ms)
                asked.append((loaded, item, [Point(rows.DEDUPE, partition, item.key) for partition in places]))
        if not asked:
            return
        found = await self._timeline.read_points(list(dict.fromkeys(point for _, _, points in asked for point in points)))
        for loaded, item, points in asked:
            position = Position(self._epoch, self._partition, item.offset)
            fates = (rows.fate_of(found[point]) for point in points if point in found)
            # Those ahead are another worker's, for later records.
            answers = [fate for fate in fates if fate.position <= position and counts(fate.log_ms, item.time_ms)]
            if answers:
                loaded.answers[item.offset] = max(answers, key=_position)
        await self._forget_unfinished([(loaded, item) for loaded, item, _ in asked])

    async def _forget_unfinished(self, asked: Iterable[tuple[Loaded, Decodable]]) -> None:
        """Drop answers from an older log that never came true: rows of a batch were written, its states were not, and the log was
        over then. Its seqs are free, or another's. In one log none can be met: what is before is applied.
        """
        places: list[tuple[Point, Loaded, Decodable]] = []
        for loaded, item in asked:
            fate = loaded.answers.get(item.offset)
            if fate is not None and fate.seq and fate.position.epoch < self._epoch:
                if fate.seq > loaded.state.head_seq:
                    del loaded.answers[item.offset]
                else:
                    places.append((rows.timeline_point(item.record.conversation_id, fate.seq, self._bucket_bits), loaded, item))
        values = await self._timeline.read_points(list({point: None for point, _, _ in places})) if places else {}
        for point, loaded, item in places:
            event = Event.FromString(values.get(point, b""))
            if rows.request_key(event.actor_device_id, event.request_id) != item.key or event.actor_user_id != item.record.user_id:
                del loaded.answers[item.offset]

    async def _load_events(self, batch: Sequence[Decodable]) -> None:
        places: dict[Point, tuple[Loaded, int]] = {}
        for item in batch:
            record = item.record
            loaded = self._conversations[record.conversation_id]
            state = loaded.state
            loaded.note_head()
            if loaded.plain_seq == state.head_seq and state.exists and not loaded.asked_again(item):
                continue  # nothing but messages, and none of them asked for again: nearly always
            for seq in self._events_needed(loaded, item):
                if seq not in loaded.events:
                    places[rows.timeline_point(record.conversation_id, seq, self._bucket_bits)] = (loaded, seq)
        if not places:
            return
        found = await self._timeline.read_points(list(places))
        for point, value in found.items():
            loaded, seq = places[point]
            loaded.events[seq] = value
            loaded.counts[seq] = Event.FromString(value).message_count

    def _events_needed(self, loaded: Loaded, item: Decodable) -> Iterable[int]:
        state, record = loaded.state, item.record
        mark = record.command.seen_seq if item.key else record.ack.read_seq
        if needs_count(state, mark) and mark > loaded.plain_seq and mark not in loaded.counts:
            yield mark
        if not item.key:
            return
        fate = loaded.fate_of(item)
        if fate is not None and fate.seq and (fate.position.epoch, fate.position.offset) == (self._epoch, item.offset):
            yield fate.seq
        if needs_first_event(record.command, state):
            yield 1

    def settle(self, batch: Sequence[Decodable]) -> None:
        """Bound what the batch's conversations keep: also those that nothing came of, for which much may have been read."""
        for conversation_id in dict.fromkeys(item.record.conversation_id for item in batch):
            self._conversations[conversation_id].settle()


def _position(fate: Fate) -> Position:
    return fate.position
