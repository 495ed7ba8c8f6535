"""Limits by rules version: what the gateway checks before the log and decide checks again, both by these numbers.

A stored record is judged by the rules version that it carries, for ever: change a number by adding a version.
"""

from typing import Final, NamedTuple

RULES_VERSION: Final = 1


class Rules(NamedTuple):
    """What a command may be at most."""

    body_bytes: int = 16 * 1024  # SendMessage.body
    command_bytes: int = 256 * 1024  # the encoded action, whatever it is; a group of 1,000 fits with ids of 128 bytes
    mentions: int = 64
    attachments: int = 16
    attachment_uri_bytes: int = 2048
    content_type_bytes: int = 128
    title_bytes: int = 256
    users_per_action: int = 1000  # CreateGroup.member_user_ids, AddMembers.user_ids


RULES: Final[dict[int, Rules]] = {1: Rules()}
DEFAULT_MEMBER_CAP: Final = 500
PAGE_EVENTS: Final = 200  # ListEvents, at most
PAGE_CONVERSATIONS: Final = 200  # Sync, at most
PAGE_BYTES: Final = 2 * 1024 * 1024  # of events in one answer, if it holds more than one: gRPC's clients take 4 MiB by default
