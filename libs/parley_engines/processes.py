"""Processes that outlive who started them: found again by pid and start time, so that no other one is taken for them."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from parley_engines.errors import EngineError
from parley_engines.leash import on_leash

_REAP_SECONDS: Final = 0.002  # threads of a process that ends follow each other within milliseconds
_POLL_SECONDS: Final = 0.1  # where the system has no event for the end of a process that is not one's child


class ProcessIdentity(NamedTuple):
    """One process, for good: pids come again, a pid with its start time does not."""

    pid: int
    started: str  # as the system says it, to be compared and not read


def start(
    command: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    output: Path,
    *,
    leashed: bool,
    timer_slack_seconds: float = 0.0,
) -> ProcessIdentity:
    """Start a command in a session of its own, appending what it says to a file.

    `leashed`: it is killed when the calling thread ends (see `leash`, also for its timers).
    """
    leash = on_leash(command, folder, leashed=leashed, timer_slack_seconds=timer_slack_seconds)
    # Not subprocess: its objects complain when they are forgotten, and to outlive us is the point here.
    pid = os.posix_spawn(
        leash[0],
        leash,
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    identity = identify(pid)
    if identity is None:
        raise EngineError(f"{command[0]} ended at once; {output} may say why")
    return identity


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the process that has this pid now; None: none has, or it has ended and was not waited for."""
    if sys.platform == "linux":
        try:
            # The name in parentheses may hold anything; fields are counted behind it (proc(5): 3 is the state, 22 the start time).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else ProcessIdentity(pid, f"{boot}/{fields[19]}")
    command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    state, _, started = asked.stdout.strip().partition(" ")
    return ProcessIdentity(pid, started.strip()) if started and not state.startswith("Z") else None


def is_running(process: ProcessIdentity) -> bool:
    """Tell whether it is this very process that runs, not another one with its pid."""
    return identify(process.pid) == process


def wait_ended(process: ProcessIdentity, seconds: float) -> bool:
    """Wait for its end; tell whether it came. A child of ours is reaped."""
    deadline = time.monotonic() + seconds
    with suppress(ProcessLookupError):
        watch = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else None
        try:
            while is_running(process):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if watch is not None:
                    select.select([watch], [], [], left)
                else:
                    time.sleep(min(_POLL_SECONDS, left))
        finally:
            if watch is not None:
                os.close(watch)
    with suppress(ChildProcessError):
        # A process whose main thread has ended looks ended; there is nothing to reap before its other threads have, too.
        while os.waitpid(process.pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(_REAP_SECONDS)
    return True


def stop(process: ProcessIdentity, seconds: float) -> None:
    """Ask it to end, and kill it if it has not after that long. Does nothing to another process that has its pid now."""
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, seconds)):
        if not is_running(process):
            break
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        if wait_ended(process, patience):
            return
    if not wait_ended(process, 0):
        raise EngineError(f"process {process.pid} does not end, not even by SIGKILL")
