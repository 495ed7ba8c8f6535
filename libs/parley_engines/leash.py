"""Run a command in a folder, and end it when the process that started it ends, however that ends.

A file of its own that is run as `python -I leash.py PARENT SLACK FOLDER COMMAND...`; PARENT 0 means no leash. The kernel sends the
signal (Linux: prctl(2), PR_SET_PDEATHSIG), and does so when the *thread* that started us ends: start engines from a thread that
lives as long as they should. It may send it more than once, while one thread after the other ends, so it has to be SIGKILL.
Elsewhere there is no leash, and `parley engines down` ends what a killed process left.

SLACK, if not 0, is how many nanoseconds the command's timers may be late (PR_SET_TIMERSLACK), on Linux.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29  # <linux/prctl.h>


def on_leash(command: Sequence[str], folder: Path, *, leashed: bool = True, timer_slack_seconds: float = 0.0) -> list[str]:
    """Return what runs a command in a folder, to be killed with the thread that starts it if it is leashed."""
    parent, slack = str(os.getpid() if leashed else 0), str(round(timer_slack_seconds * 1e9))
    return [sys.executable, "-I", __file__, parent, slack, str(folder), *command]


def main() -> None:
    parent, slack, folder, *command = sys.argv[1:]
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        if int(slack):
            prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(int(slack)))  # the program and its threads inherit it
        if int(parent):
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != int(parent):  # it ended before we asked
                sys.exit(1)
    os.chdir(folder)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
