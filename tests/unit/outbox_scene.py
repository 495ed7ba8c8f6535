"""An outbox whose commands are named by what they say, for the tests of it."""

from parley_client.outbox_state import OutboxState, Pending, Run

FRAME = 100  # commands
SIZE = 1 << 20


def command(name: str, conversation: str = "x", created_ms: int = 0) -> Pending:
    return Pending(name.encode(), name.encode(), created_ms, conversation)


def outbox(*commands: Pending, window: int = 256) -> OutboxState:
    """Return the outbox of a stream that just began, with commands that were never sent."""
    box = OutboxState(window=window)
    box.start_stream(0)
    for each in commands:
        box.add(each)
    return box


def names(run: Run | None) -> list[tuple[int, str]]:
    if run is None:
        return []
    return [(number, command.request_id.decode()) for number, command in enumerate(run.commands, run.first_number)]


def take(box: OutboxState, now: float = 0.0) -> list[tuple[int, str]]:
    """Return all that can go out now."""
    taken: list[tuple[int, str]] = []
    while (run := box.take(now, FRAME, SIZE)) is not None:
        taken += names(run)
    return taken
