"""Where a chat is shown and typed: a terminal with a prompt that stays whole, or plain pipes."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.renderer import print_formatted_text as render
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
_TYPED_LINES = 100  # before Enter does nothing until some are done: nobody types that fast


class Screen(Protocol):
    """What the conversation needs of its surroundings."""

    def show(self, pieces: Pieces) -> None:
        """Show one line (it may hold breaks) above what is being typed."""

    def refresh(self) -> None:
        """The status changed: draw it again."""

    def lines(self, prompt: Draw, status: Draw) -> AsyncGenerator[str, None]:
        """Yield what is typed, line by line, until the end of input. `prompt` and `status` are drawn anew at each refresh."""


class TerminalScreen:
    """A prompt at the bottom with a status under it; what is shown scrolls by above.

    One prompt for the whole chat: between two prompts the terminal would be in its own mode, and break what is typed just then.
    """

    def __init__(self) -> None:
        self._typed: deque[str] = deque()
        self._wake = asyncio.Event()
        self._session: PromptSession[str] = PromptSession(
            erase_when_done=True,
            history=InMemoryHistory(),
            key_bindings=_keys(),
            style=STYLE,
            include_default_pygments_style=False,
            reserve_space_for_menu=0,  # there is none
        )
        self._session.default_buffer.accept_handler = self._accept

    def show(self, pieces: Pieces) -> None:
        app = self._session.app
        if not app.is_running:
            print_formatted_text(FormattedText(pieces), style=STYLE)
            return
        # Not by prompt_toolkit's run_in_terminal, which leaves raw mode for the line: a Ctrl-D just then is lost.
        app.renderer.erase()
        render(app.output, FormattedText([*pieces, ("", "\n")]), STYLE)
        app.renderer.request_absolute_cursor_position()
        app.invalidate()

    def refresh(self) -> None:
        self._session.app.invalidate()

    async def lines(self, prompt: Draw, status: Draw) -> AsyncGenerator[str, None]:
        typing = asyncio.ensure_future(
            self._session.prompt_async(message=lambda: FormattedText(prompt()), bottom_toolbar=lambda: FormattedText(status()))
        )
        typing.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                while self._typed:
                    yield self._typed.popleft()
                if typing.done():
                    with suppress(EOFError):  # Ctrl-D: the end
                        typing.result()
                    return
                await self._wake.wait()
        finally:
            typing.cancel()
            await asyncio.wait([typing])

    def _accept(self, buffer: Buffer) -> bool:
        """Take a line when Enter is pressed; tell whether it stays in the prompt: it comes back in the timeline's order."""
        if len(self._typed) >= _TYPED_LINES:
            return True
        self._typed.append(buffer.text)
        self._wake.set()
        return False


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-c")
    @keys.add("<sigint>")  # what Ctrl-C is while a line is being shown: the terminal is in its own mode then
    def _(event: KeyPressEvent) -> None:
        """Drop what is being typed; leave if that is nothing."""
        if event.app.current_buffer.text:
            event.app.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError())

    return keys


class PlainScreen:
    """Lines in, lines out: for pipes, scripts and tests."""

    def show(self, pieces: Pieces) -> None:
        print("".join(text for _, text in pieces), flush=True)

    def refresh(self) -> None:
        """Nothing is drawn twice here."""

    async def lines(self, prompt: Draw, status: Draw) -> AsyncGenerator[str, None]:  # there is neither
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


async def _piped_lines(descriptor: int) -> AsyncGenerator[str, None]:
    """Read lines without a thread, which could not be told to stop."""
    held = b""
    while True:
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
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:  # a regular file, or /dev/null: reading never waits there, and epoll refuses to watch
        return
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
