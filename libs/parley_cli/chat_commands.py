"""What a typed line means. Pure.

A line is a message unless it starts with a slash; a message that starts with one is typed with two.
"""

import shlex
from typing import NamedTuple

from parley_protocol.ids import is_app_id, is_conversation_id

HELP = """\
Type a line and press Enter to send it. A line that starts with / is a command:
  /to USER | GROUP              talk to a user, or in a group (id or title)
  /history [N]                  show N (20) earlier lines, and N more each time
  /who                          show who is here, connected, has read how far
  /list                         show your conversations with unread counts
  /group create TITLE USER...   make a group and talk in it
  /group add USER...            add members
  /group leave                  leave this group
  /help                         show this
  /quit                         leave (as Ctrl-D); what waits is sent next time
Start a message with // to send a line that begins with /."""

DEFAULT_HISTORY_LINES = 20  # fits a small terminal together with the prompt
_MAX_HISTORY_LINES = 1000


class Say(NamedTuple):
    """Send a message."""

    text: str


class To(NamedTuple):
    """Talk elsewhere: a user, a group's id or its title."""

    target: str


class History(NamedTuple):
    """Show older lines."""

    lines: int


class GroupCreate(NamedTuple):
    """Make a group."""

    title: str
    user_ids: tuple[str, ...]


class GroupAdd(NamedTuple):
    """Add members."""

    user_ids: tuple[str, ...]


class GroupLeave(NamedTuple):
    """Leave this group."""


class Who(NamedTuple):
    """Show the members."""


class Conversations(NamedTuple):
    """Show the list of conversations."""


class Help(NamedTuple):
    """Show the commands."""


class Quit(NamedTuple):
    """Leave."""


Line = Say | To | History | GroupCreate | GroupAdd | GroupLeave | Who | Conversations | Help | Quit


class NotUnderstoodError(ValueError):
    """The line is no message and no command; the text says what would be."""


def parse_line(line: str) -> Line | None:
    """Return what a line asks for, or None for an empty one. Raises NotUnderstoodError."""
    if not line.strip():
        return None
    if not line.startswith("/"):
        return Say(line)
    if line.startswith("//"):
        return Say(line[1:])
    try:
        name, *arguments = shlex.split(line[1:]) or [""]
    except ValueError:
        raise NotUnderstoodError("the line ends within quotes or after a backslash: close the quotes") from None
    match name, arguments:
        case "to", [target]:
            return To(target)
        case "history", []:
            return History(DEFAULT_HISTORY_LINES)
        case "history", [count] if count.isdecimal() and 0 < int(count) <= _MAX_HISTORY_LINES:
            return History(int(count))
        case "who", []:
            return Who()
        case "list", []:
            return Conversations()
        case "group", ["create", title, *users] if users:
            return GroupCreate(title, _users(users))
        case "group", ["add", *users] if users:
            return GroupAdd(_users(users))
        case "group", ["leave"]:
            return GroupLeave()
        case "help", []:
            return Help()
        case (("quit" | "exit"), []):
            return Quit()
        case _:
            raise NotUnderstoodError(_usage(name))


def is_group_id(target: str) -> bool:
    """Tell whether a target is a group's id rather than a user or a title."""
    return is_conversation_id(target) and target.startswith("g_")


def _users(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if not is_app_id(name):
            raise NotUnderstoodError(f"{name!r} can't be a user id: printable ASCII without spaces")
    return tuple(names)


def _usage(name: str) -> str:
    lines = [line.strip().split("   ")[0] for line in HELP.splitlines() if line.startswith(f"  /{name} ")]
    return "usage: " + " or ".join(lines) if lines else f"there is no command /{name} (/help lists them; //{name} sends it)"
