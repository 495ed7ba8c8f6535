"""A history in which all went well, for tests of its judge and of its files."""

from parley_checker.history import Answered, Asked, Device, Entry, History, Mark, ReadBack, Shown, View
from parley_protocol.ids import direct_conversation_id

DIRECT = direct_conversation_id("alice", "bob")
GROUP = "g_" + "a" * 26
ALICE, ALICE_2, BOB = Device("alice", "a1"), Device("alice", "a2"), Device("bob", "b1")
CAROL = Device("carol", "c1")


def clean_history() -> History:
    """Two devices of alice, one of bob, one of carol: a 1-1 of six messages, and a group that carol leaves and comes back to."""
    history = History()
    timelines: dict[str, list[Entry]] = {DIRECT: [], GROUP: []}
    views = {GROUP: {"alice", "bob", "carol"}, DIRECT: {"alice", "bob"}}

    def happen(
        actor: Device, conversation: str, kind: str, body: bytes = b"", joined: tuple[str, ...] = (), left: tuple[str, ...] = ()
    ):
        timeline = timelines[conversation]
        request_id = len(timeline).to_bytes(15, "big") + conversation[:1].encode()
        entry = Entry(conversation, len(timeline) + 1, actor, request_id, kind, body, joined, left)
        timeline.append(entry)
        history.devices[actor].asked.append(Asked(request_id, conversation, kind, body))
        history.devices[actor].answered.append(Answered(request_id, conversation, entry.seq))
        views[conversation] |= set(joined)
        for device, own in history.devices.items():
            if device != actor and device.user_id in views[conversation]:
                own.shown.append(Shown(1, entry))
        views[conversation] -= set(left)

    for device in (ALICE, ALICE_2, BOB, CAROL):
        history.device(*device).settled = True
    for turn in range(3):
        happen(ALICE, DIRECT, "message", b"ping %d" % turn)
        happen(BOB, DIRECT, "message", b"pong %d" % turn)
    happen(ALICE, GROUP, "group_created", joined=("alice", "bob", "carol"))
    happen(BOB, GROUP, "message", b"hello")
    happen(CAROL, GROUP, "member_left", left=("carol",))
    happen(BOB, GROUP, "message", b"carol must not see this")
    happen(ALICE, GROUP, "members_added", joined=("carol",))
    happen(ALICE, GROUP, "message", b"welcome back")
    history.devices[BOB].reads.append(ReadBack(DIRECT, 2, 4))
    history.devices[ALICE].marks += [Mark(1, DIRECT, "bob", 2, 1), Mark(1, DIRECT, "bob", 3, 1), Mark(2, DIRECT, "bob", 6, 6)]
    history.devices[ALICE].views.append(View(DIRECT, 6, 6, 3, 2))
    history.devices[BOB].views += [View(DIRECT, 6, 6, 6, 0), View(GROUP, 6, 6, 1, 1)]
    history.readings["api"] = timelines
    history.readings["files"] = {conversation: list(timeline) for conversation, timeline in timelines.items()}
    return history
