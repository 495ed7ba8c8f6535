"""The Python SDK: one device of one user, as every client in every language should behave. docs/client.md states the rules.

Owns the device's local state (outbox, events, positions, watermarks), the stream to a gateway and its reconnecting, catching up,
and acknowledgements. Promises: a command is kept before it is sent and resent unchanged until it has its outcome; each
conversation's events reach the app in order, without gaps inside what its user may see, each once per process and at least once
over a crash; watermarks never go back. Never: invents an outcome, shows an event that it has not kept, knows how a server is built.

Pure cores: `outbox_state`, `timelines` over `conversation_state`, `ack_state`, joined in `device_state`; `reconnect`, `backoff`.
Edges: `connection` (one stream), `session` (its work), `catch_up`, `link` (stream after stream), `store_*`, `client` (for apps).
"""

from parley_client.channel import ChannelFactory, channels_to
from parley_client.client import Client, open_client
from parley_client.errors import (
    CallError,
    ClientError,
    ClosedError,
    CommandCancelledError,
    FailedError,
    InvalidCommandError,
    OutboxFullError,
    ProtocolError,
    RejectedError,
    SignedOffError,
    StatusError,
    StoreError,
    StoreInUseError,
    StoreMismatchError,
    UnknownConversationError,
)
from parley_client.notices import (
    CaughtUp,
    CommandHeld,
    CommandRejected,
    ConnectionChanged,
    ConnectionState,
    ConversationChanged,
    FrameRefused,
    Missed,
    Notice,
    NoticeStream,
    ReceiptMoved,
)
from parley_client.options import ClientOptions
from parley_client.store import Store
from parley_client.store_memory import MemoryStore
from parley_client.store_sqlite import SqliteStore
from parley_client.tickets import Accepted, Ticket
from parley_client.token import Token, TokenUnavailableError
from parley_client.views import Conversation, EventStream, TimelineEvent

__all__ = [
    "Accepted",
    "CallError",
    "CaughtUp",
    "ChannelFactory",
    "Client",
    "ClientError",
    "ClientOptions",
    "ClosedError",
    "CommandCancelledError",
    "CommandHeld",
    "CommandRejected",
    "ConnectionChanged",
    "ConnectionState",
    "Conversation",
    "ConversationChanged",
    "EventStream",
    "FailedError",
    "FrameRefused",
    "InvalidCommandError",
    "MemoryStore",
    "Missed",
    "Notice",
    "NoticeStream",
    "OutboxFullError",
    "ProtocolError",
    "ReceiptMoved",
    "RejectedError",
    "SignedOffError",
    "SqliteStore",
    "StatusError",
    "Store",
    "StoreError",
    "StoreInUseError",
    "StoreMismatchError",
    "Ticket",
    "TimelineEvent",
    "Token",
    "TokenUnavailableError",
    "UnknownConversationError",
    "channels_to",
    "open_client",
]
