"""The `parley` command as a user runs it: a child process with pipes or a terminal, awaited by what it prints."""

import codecs
import contextlib
import os
import pty
import queue
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

DEADLINE_SECONDS = 30.0  # for one expected line; generous because machines that run tests are busy
PARLEY = (sys.executable, "-m", "parley_cli")
# A session leader takes the terminal on its stdin as its own, so that Ctrl-C there reaches the foreground job, as for a user.
_TAKE_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
_WHERE_IS_THE_CURSOR = "\x1b[6n"
_ESCAPES = re.compile(r"\x1b(\[[0-9;?<>]*[a-zA-Z~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])")


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which nothing of the user's own settings or data can be reached."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PARLEY_", "XDG_"))}
    return kept | {"HOME": str(home), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "error::ResourceWarning"} | dict(extra or {})


class Output:
    """What a process has written so far, and what it will."""

    def __init__(self) -> None:
        self.text = ""
        self._position = 0
        self._more: queue.Queue[str | None] = queue.Queue()
        self._ended = False

    def feed(self, text: str | None) -> None:
        self._more.put(text)

    def expect(self, pattern: str, seconds: float = DEADLINE_SECONDS) -> re.Match[str]:
        """Wait until the pattern matches what was written after the last match."""
        deadline = time.monotonic() + seconds
        while True:
            if match := re.compile(pattern, re.MULTILINE).search(self.text, self._position):
                self._position = match.end()
                return match
            if not self._take(deadline):
                raise AssertionError(f"no {pattern!r} within {seconds:g} s, but:\n{self.text[self._position :] or '(nothing)'}")

    def rest(self, seconds: float = DEADLINE_SECONDS) -> str:
        """Wait for the end and return all that was written."""
        deadline = time.monotonic() + seconds
        while self._take(deadline):
            pass
        assert self._ended, f"still open after {seconds:g} s"
        return self.text

    def _take(self, deadline: float) -> bool:
        if self._ended:
            return False
        try:
            text = self._more.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return False
        self._ended = text is None
        self.text += text or ""
        return not self._ended


class Program:
    """One running command, in a session of its own. Use it as a context manager: leaving kills what still runs of it."""

    def __init__(
        self, *command: str, home: Path, env: Mapping[str, str] | None = None, terminal: bool = False, directory: Path | None = None
    ) -> None:
        self.stdout, self.stderr = Output(), Output()
        self._terminal: int | None = None
        if terminal:
            self._terminal, inner = pty.openpty()
            termios.tcsetwinsize(inner, (30, 100))
            env = {"TERM": "xterm-256color"} | dict(env or {})
            command = (sys.executable, "-c", _TAKE_TERMINAL, *command)
            pipes = (inner, inner, inner)
        else:
            pipes = (subprocess.PIPE, subprocess.PIPE, subprocess.PIPE)
        self._process = subprocess.Popen(
            command,
            stdin=pipes[0],
            stdout=pipes[1],
            stderr=pipes[2],
            env=environment(home, env),
            cwd=directory,
            start_new_session=True,
        )
        if terminal:
            os.close(inner)
            self.stderr.feed(None)
            self._readers = [threading.Thread(target=self._read_terminal, daemon=True)]
        else:
            assert self._process.stdout
            assert self._process.stderr
            self._readers = [
                threading.Thread(target=self._read, args=(pipe, output), daemon=True)
                for pipe, output in ((self._process.stdout, self.stdout), (self._process.stderr, self.stderr))
            ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole session ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._terminal is not None:
            os.close(self._terminal)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def terminal_echoes(self) -> bool:
        """Whether its terminal is in the state in which shells expect it."""
        assert self._terminal is not None
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def expect(self, pattern: str, seconds: float = DEADLINE_SECONDS) -> re.Match[str]:
        """Wait for a pattern on stdout; if it does not come, stderr is shown too."""
        try:
            return self.stdout.expect(pattern, seconds)
        except AssertionError as error:
            with contextlib.suppress(AssertionError):
                self.stderr.rest(0.0)
            raise AssertionError(f"{error}\nstderr:\n{self.stderr.text}") from None

    def type(self, text: str) -> None:
        """Write to its stdin, or press keys on its terminal."""
        if self._terminal is not None:
            os.write(self._terminal, text.encode())
        else:
            assert self._process.stdin
            self._process.stdin.write(text.encode())
            self._process.stdin.flush()

    def end_input(self) -> None:
        """Close its stdin."""
        assert self._process.stdin
        self._process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for its end and return the exit code (negative: the signal that killed it)."""
        return self._process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def _read(self, pipe: IO[bytes], output: Output) -> None:
        for line in pipe:
            output.feed(line.decode(errors="replace"))
        output.feed(None)

    def _read_terminal(self) -> None:
        assert self._terminal is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held = ""  # the beginning of an escape sequence that was cut by the read
        with contextlib.suppress(OSError):  # EIO: the other side of the terminal is closed
            while data := os.read(self._terminal, 65_536):
                text = held + decoder.decode(data)
                if _WHERE_IS_THE_CURSOR in text:
                    os.write(self._terminal, b"\x1b[1;1R")  # in the first line: enough to know how much fits below it
                cut = text.rfind("\x1b")
                held = text[cut:] if cut >= 0 and not _ESCAPES.match(text, cut) else ""
                self.stdout.feed(_ESCAPES.sub("", text[: len(text) - len(held)]).replace("\r", ""))
        self.stdout.feed(None)


class Parley(Program):
    """One running `parley` command."""

    def __init__(self, *arguments: str, home: Path, env: Mapping[str, str] | None = None, terminal: bool = False) -> None:
        super().__init__(*PARLEY, *arguments, home=home, env=env, terminal=terminal)


class Server(Parley):
    """A `parley up` that serves from when the context is entered; `address` says where."""

    def __init__(self, data: Path, *arguments: str, listen: str = "127.0.0.1:0", env: Mapping[str, str] | None = None) -> None:
        super().__init__("up", "--listen", listen, "--data", str(data), *arguments, home=data.parent, env=env)
        self.address = ""
        self.data = data
        self.home = data.parent

    @property
    def client_options(self) -> list[str]:
        return ["--server", self.address, "--data", str(self.data)]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> tuple[int, str, str]:
        """Run a client command of it to the end; return exit code, stdout and stderr."""
        return run(*arguments, *self.client_options, home=self.home, env=env, stdin=stdin)

    def __enter__(self) -> Self:
        try:
            self.address = self.expect(r"^parley is ready on (\S+)$")[1]
        except BaseException:
            self.__exit__()
            raise
        return self


def run(*arguments: str, home: Path, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run a command to its end; return exit code, stdout and stderr."""
    done = subprocess.run(
        [*PARLEY, *arguments],
        input=stdin,
        capture_output=True,
        env=environment(home, env),
        timeout=2 * DEADLINE_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()
