"""What scrolls by in a chat: events, ticks that turned, notes and errors, a line each."""

from datetime import datetime
from typing import Final

from parley_cli.chat_screen import Pieces, Screen
from parley_cli.rendering import describe, harmless
from parley_cli.ticks import SIGNS, WORDS, Tick, Ticks, Turn
from parley_client import TimelineEvent

TICK_STYLES: Final = {Tick.SENT: "class:sent", Tick.DELIVERED: "class:delivered", Tick.READ: "class:read"}


class Lines:
    """Writes them for a user, whose own messages have ticks."""

    def __init__(self, screen: Screen, user: str) -> None:
        self._screen = screen
        self._user = user

    def event(self, event: TimelineEvent, ticks: Ticks) -> None:
        """Show an event at its place in the timeline, with the tick that it has now."""
        time = datetime.fromtimestamp(event.time_ms / 1000)
        when = time.strftime("%H:%M" if time.date() == datetime.now().date() else "%Y-%m-%d %H:%M")
        place: Pieces = [("class:note", f"#{event.seq} {when} ")]
        if event.content != "message":
            self._screen.show([*place, ("class:note", describe(event.event))])
            return
        own = event.actor == self._user
        pieces: Pieces = [*place, ("class:own" if own else "class:other", f"{event.actor}: "), ("", describe(event.event))]
        if own:
            tick = ticks.of(event.seq)
            pieces.append((TICK_STYLES[tick], f" {SIGNS[tick]}"))
        self._screen.show(pieces)

    def turn(self, turn: Turn) -> None:
        """Tell that ticks of lines above have turned."""
        self._screen.show(
            [
                ("class:note", "      "),
                (TICK_STYLES[turn.tick], SIGNS[turn.tick]),
                ("class:note", f" {WORDS[turn.tick]} up to #{turn.seq}"),
            ]
        )

    def note(self, text: str) -> None:
        """Say something beside the conversation."""
        self._screen.show([("class:note", text)])

    def error(self, text: str) -> None:
        """Say that something did not work."""
        self._screen.show([("class:error", f"! {harmless(text)}")])
