"""Where a chat is shown and typed: a terminal with a prompt that stays whole, or plain pipes."""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

# What prompt_toolkit calls formatted text: pieces of (style, text).
Pieces = list[tuple[str, str]]
Draw = Callable[[], Pieces]

STYLE = Style.from_dict(
    {
        "bottom-toolbar": "noreverse",
        "note": "ansibrightblack",
        "own": "ansigreen",
        "other": "ansiyellow",
        "error": "ansired",
        "sent": "",
        "delivered": "",
        "read": "ansibrightblue bold",
        "waiting": "ansibrightblack",
    }
)
_READ_BYTES = 65_536


class Screen(Protocol):
    """What the conversation needs of its surroundings."""

    def show(self, pieces: Pieces) -> None:
        """Show one line (it may hold breaks) above what is being typed."""

    def refresh(self) -> None:
        """The status changed: draw it again."""

    def lines(self, prompt: Draw, status: Draw) -> AsyncIterator[str]:
        """Yield what is typed, line by line, until the end of input. `prompt` and `status` are drawn anew at each refresh."""


class TerminalScreen:
    """A prompt at the bottom with a status under it; what is shown scrolls by above."""

    def __init__(self) -> None:
        self._session: PromptSession[str] = PromptSession(
            erase_when_done=True,  # the line comes back in the timeline's order, once it is stored
            history=InMemoryHistory(),
            style=STYLE,
            include_default_pygments_style=False,
            reserve_space_for_menu=0,  # there is none
        )

    def show(self, pieces: Pieces) -> None:
        print_formatted_text(FormattedText(pieces), style=STYLE)

    def refresh(self) -> None:
        self._session.app.invalidate()

    async def lines(self, prompt: Draw, status: Draw) -> AsyncIterator[str]:
        while True:
            try:
                yield await self._session.prompt_async(
                    message=lambda: FormattedText(prompt()), bottom_toolbar=lambda: FormattedText(status())
                )
            except KeyboardInterrupt:  # Ctrl-C: what was being typed is dropped; with nothing typed it leaves
                if not self._session.default_buffer.text:
                    return
            except EOFError:
                return


class PlainScreen:
    """Lines in, lines out: for pipes, scripts and tests."""

    def show(self, pieces: Pieces) -> None:
        print("".join(text for _, text in pieces), flush=True)

    def refresh(self) -> None:
        """Nothing is drawn twice here."""

    async def lines(self, prompt: Draw, status: Draw) -> AsyncIterator[str]:  # there is neither
        async for line in _piped_lines(sys.stdin.fileno()):
            yield line


@contextmanager
def open_screen() -> Iterator[TerminalScreen | PlainScreen]:
    """Choose by what stdin and stdout are."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with patch_stdout():
            yield TerminalScreen()
    else:
        yield PlainScreen()


async def _piped_lines(descriptor: int) -> AsyncIterator[str]:
    """Read lines without a thread, which could not be told to stop; a regular file never makes one wait."""
    waits = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    held = b""
    while True:
        if waits:
            await _readable(descriptor)
        data = os.read(descriptor, _READ_BYTES)
        *complete, held = (held + data).split(b"\n")
        for line in complete if data else [held] if held else []:
            yield line.removesuffix(b"\r").decode(errors="replace")
        if not data:
            return


async def _readable(descriptor: int) -> None:
    """Wait until a read would not block. Asked anew for each read: an answer that came before the last one may be stale."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
