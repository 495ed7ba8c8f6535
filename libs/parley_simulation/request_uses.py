"""Which use of a request id a record is, by arithmetic over the log: after two weeks an id may be used anew.

The judge of histories knows no times. So who uses an id again is another device to it, that shares nothing with the first.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from parley.api.v1.commands_pb2 import SendMessage
from parley.log.v1.records_pb2 import CommandRecord
from parley_checker.history import KIND_OF_ACTION, Asked, Device
from services.store.decide import CREATE_GROUP, MESSAGE

DAY_MS = 24 * 3600 * 1000
# Written here once more: the judge takes nothing from whom it judges.
REMEMBERED_MS = 14 * DAY_MS
AHEAD_MS = 7 * DAY_MS

Request = tuple[Device, bytes]


class Use(NamedTuple):
    """What the first record of a use asked for, and when."""

    time_ms: int
    action: str
    payload: bytes


class RequestUses:
    """All uses of all request ids, in the order of the log."""

    def __init__(self, records: Sequence[tuple[CommandRecord, int]], undecidable: set[Request]) -> None:
        self.refused: set[Request] = set()  # asked again with another payload while it was remembered
        self.later: dict[Device, list[Asked]] = defaultdict(list)  # by the name of who uses an id again
        self._uses: dict[Request, list[Use]] = defaultdict(list)
        for record, time_ms in records:
            request = Device(record.user_id, record.device_id), record.command.request_id
            if record.WhichOneof("body") == "command" and request not in undecidable:
                self._take(request, record, time_ms)

    def _take(self, request: Request, record: CommandRecord, time_ms: int) -> None:
        action = record.command.WhichOneof("action")
        assert action is not None
        asked, uses = Use(time_ms, action, getattr(record.command, action)), self._uses[request]
        known = [use for use in uses if -AHEAD_MS <= time_ms - use.time_ms <= REMEMBERED_MS]
        if known:
            if known[-1][1:] != asked[1:]:
                self.refused.add(request)
        elif not (action == CREATE_GROUP and uses):  # a group remembers its own creation, for good
            uses.append(asked)
            if len(uses) > 1:
                body = SendMessage.FromString(asked.payload).body if action == MESSAGE else b""
                about = Asked(request[1], record.conversation_id, KIND_OF_ACTION[action], body)
                self.later[_again(request[0], len(uses) - 1)].append(about)

    def user_at(self, request: Request, time_ms: int) -> Device:
        """Return who the judge takes for the author of what was stored at a log time."""
        times = [use.time_ms for use in self._uses.get(request, ())]
        return _again(request[0], times.index(time_ms) if time_ms in times else 0)

    def rejected_user(self, request: Request, stored: set[Device]) -> Device:
        """Return whose rejection it may be: of the first use of which nothing is stored. `stored` are the authors."""
        users = [_again(request[0], number) for number in range(len(self._uses.get(request, ())))]
        return next((user for user in users if user not in stored), request[0])


def _again(device: Device, number: int) -> Device:
    return Device(device.user_id, f"{device.device_id} again {number}") if number else device
