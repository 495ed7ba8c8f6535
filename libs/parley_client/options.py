"""What an app may tune; the defaults suit a phone, a desktop and a bot."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Numbers and a name. What the server limits further, it says in Welcome."""

    client_name: str = "parley-python"  # shown to operators
    rpc_timeout_seconds: float = 10.0  # each unary call, and Hello to Welcome: longer than that, a server is as good as gone
    first_sync_events: int = 20  # a new device begins with that many of each conversation: a screen
    sync_events: int = 10  # come along with each row of a later Sync: small gaps need no page
    sync_page_conversations: int = 50
    page_events: int = 200
    parallel_fetches: int = 4  # gaps filled at the same time: a crowd of reconnecting devices must not starve live traffic
    in_flight_commands: int = 256  # sent without an outcome at most: what a reconnect sends again
    pending_commands: int = 10_000  # queued at most, beyond which `send` raises OutboxFullError
    keep_events: int = 0  # per conversation and device; 0: all. Older ones are fetched again by `history`
    notices: int = 1024  # a slow reader of `changes` loses the oldest beyond that
