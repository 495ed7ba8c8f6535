"""What a device knows and owes, as it moves on, is kept and comes back: a step at a time, over a restart of its app."""

import random

from parley.api.v1.commands_pb2 import Command, Leave, Outcome
from parley.api.v1.events_pb2 import Event
from parley.api.v1.messaging_service_pb2 import ServerBatch
from parley_client import MemoryStore, RejectedError
from parley_client.device_state import DeviceState, Step
from parley_client.outbox_state import LOOK_AFTER_MS

FIRST, SECOND, THIRD = (bytes([number]) * 16 for number in (1, 2, 3))
WEEKS_LATER_MS = 2 * LOOK_AFTER_MS


class App:
    """A device's state with its store, whose steps are kept as they come. No server: what it would say is told."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.restart()

    def restart(self) -> None:
        self.state = DeviceState(self.store.load(), counting=self.store, rng=random.Random(1), window=10)

    def keep(self, step: Step) -> Step:
        if step.change:
            self.store.commit(step.change)
        return step

    def connect(self, wall_ms: int) -> None:
        self.keep(self.state.on_welcome("bob", "d1", wall_ms))

    def ask(self, request_id: bytes, conversation_id: str) -> None:
        self.keep(self.state.add_command(Command(request_id=request_id, conversation_id=conversation_id, leave=Leave()), 0))

    def sends(self) -> list[bytes]:
        run = self.state.outbox.take(0.0, 100, 1 << 20)
        return [command.request_id for command in run.commands] if run else []


def accepted(request_id: bytes, conversation_id: str) -> ServerBatch:
    outcome = Outcome(request_id=request_id)
    outcome.accepted.conversation_id = conversation_id
    outcome.accepted.seq = 5
    return ServerBatch(outcomes=[outcome])


def asked_for_two_things() -> App:
    """Return an app that asked for two things in x and one in y, and heard the outcome of the second alone."""
    app = App()
    app.connect(0)
    for request_id, conversation_id in ((FIRST, "x"), (SECOND, "x"), (THIRD, "y")):
        app.ask(request_id, conversation_id)
    assert app.sends() == [FIRST, SECOND, THIRD]
    app.keep(app.state.on_batch(accepted(SECOND, "x"), 0.0))
    return app


def test_what_was_overtaken_before_a_restart_is_given_up_weeks_after_it():
    app = asked_for_two_things()
    app.restart()
    app.connect(WEEKS_LATER_MS)
    assert app.sends() == []
    step = app.keep(app.state.on_caught_up())
    ((request_id, error),) = step.outcomes
    assert request_id == FIRST
    assert isinstance(error, RejectedError)
    assert app.sends() == [THIRD]
    assert [command.request_id for command in app.store.load().commands] == [THIRD]


def test_what_its_own_event_shows_as_stored_overtakes_as_well():
    app = App()
    app.connect(0)
    app.ask(FIRST, "x")
    app.ask(SECOND, "x")
    app.sends()
    event = Event(conversation_id="x", seq=1, actor_user_id="bob", actor_device_id="d1", request_id=SECOND)
    app.keep(app.state.on_batch(ServerBatch(events=[event]), 0.0))
    app.restart()
    app.connect(WEEKS_LATER_MS)
    assert [request_id for request_id, _ in app.keep(app.state.on_caught_up()).outcomes] == [FIRST]


def test_what_was_overtaken_is_asked_again_while_the_server_knows_why():
    app = asked_for_two_things()
    app.restart()
    app.connect(LOOK_AFTER_MS)
    assert app.sends() == [FIRST, THIRD]
