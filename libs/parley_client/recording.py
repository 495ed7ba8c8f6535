"""Records of what an app asked, was told and showed: what `parley check` judges the delivery contract by.

    with open_record("alice-phone.jsonl", user_id="alice", device_id="phone") as recorder:
        async with open_client(..., recorder=recorder) as client:
            ...

A record must begin with the device's first command: what it asked before would look invented. Each fact is in the file before the
app goes on, so a killed app's record is whole up to its last moment. Bodies are written as hashes.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from parley.api.v1.commands_pb2 import Command
from parley.api.v1.events_pb2 import Event
from parley_checker.files import entry_line, fact_line, header, unknown_line
from parley_checker.history import Answered, Device, Entry, Fact, Mark, Scrolled, Settled, Shown, View, asked_of, entry_of
from parley_client.errors import ClientError, RejectedError
from parley_client.notices import Notice, ReceiptMoved
from parley_client.tickets import Accepted
from parley_protocol.ids import direct_conversation_id, group_conversation_id

if TYPE_CHECKING:
    from parley_client.views import Conversation


class Recorder:
    """Notes one run of a device's process. `run` differs from that of its other runs."""

    def __init__(
        self,
        device: Device,
        run: int,
        note: Callable[[Fact], None],
        note_unknown: Callable[[bytes], None] = lambda _request_id: None,
    ) -> None:
        self._device = device
        self._run = run
        self._note = note
        self._note_unknown = note_unknown
        self._conversations: dict[bytes, str] = {}  # of what was asked in this run

    def asked(self, command: Command) -> None:
        """Note a command that is about to be kept."""
        user_id, device_id = self._device
        if command.WhichOneof("action") == "create_group":
            conversation_id = group_conversation_id(user_id, device_id, command.request_id)
        else:
            conversation_id = command.conversation_id or direct_conversation_id(user_id, command.to_user_id)
        self._conversations[command.request_id] = conversation_id
        self._note(asked_of(command, conversation_id))

    def answered(self, request_id: bytes, outcome: Accepted | ClientError) -> None:
        """Note an outcome. What ended otherwise (closed, cancelled) stays unknown: the next run may learn it."""
        conversation_id = self._conversations.pop(request_id, "")
        if isinstance(outcome, Accepted):
            self._note(Answered(request_id, outcome.conversation_id, outcome.seq))
        elif isinstance(outcome, RejectedError):
            self._note(Answered(request_id, conversation_id, 0))
        else:
            self._note_unknown(request_id)

    def shown(self, event: Event) -> None:
        """Note an event that the app gets now."""
        self._note(Shown(self._run, entry_of(event)))

    def told(self, notice: Notice) -> None:
        """Note watermarks."""
        if isinstance(notice, ReceiptMoved):
            self._note(Mark(self._run, notice.conversation_id, notice.user_id, notice.delivered_seq, notice.read_seq))

    def scrolled(self, conversation_id: str) -> None:
        """Note that older events are fetched, which are held from now on and never shown as news."""
        self._note(Scrolled(conversation_id))

    def settle(self, conversations: Iterable["Conversation"]) -> None:
        """Note what the device shows at the end, and that it is complete: nothing is under way, all that happened was shown."""
        first_held: dict[str, int] = {}
        for view in conversations:
            name = view.conversation_id
            self._note(View(name, view.held_seq, view.head_seq, view.read_seq, view.unread_count))
            first_held[name] = view.first_held_seq
        self._note(Settled(first_held))


class RecordFile:
    """A file of facts; made by `open_record_file`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def note(self, device: Device, fact: Fact) -> None:
        """Write a fact."""
        self._write(fact_line(device, fact))

    def note_unknown(self, device: Device, request_id: bytes) -> None:
        """Write that a device does not know what became of a command."""
        self._write(unknown_line(device, request_id))

    def note_stored(self, source: str, entries: Iterable[Entry]) -> None:
        """Write what the tables hold; `source` says how they were read."""
        for entry in entries:
            self._write(entry_line(source, entry))


@contextmanager
def open_record_file(path: str | Path) -> Iterator[RecordFile]:
    """Open a file of facts, or go on with one: each line is handed to the system as it is written. Raises OSError."""
    with open(path, "ab+") as file:
        _drop_half_a_line(file.fileno())
        if not os.fstat(file.fileno()).st_size:
            file.write(header().encode())
            file.flush()
        yield RecordFile(lambda line: os.write(file.fileno(), line.encode()))


@contextmanager
def open_record(path: str | Path, *, user_id: str, device_id: str) -> Iterator[Recorder]:
    """Record one run of a device's process into a file, after the runs that it holds. Raises OSError."""
    device = Device(user_id, device_id)
    with open_record_file(path) as file:
        run = time.time_ns() // 1_000_000  # another one each time; which one says nothing
        yield Recorder(device, run, lambda fact: file.note(device, fact), lambda request_id: file.note_unknown(device, request_id))


def _drop_half_a_line(descriptor: int) -> None:
    """Cut off what a killed process had not written to its end."""
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)
