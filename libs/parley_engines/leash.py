"""Run a command in a folder, and end it when the process that started it ends, however that ends.

A file of its own that is run as `python -I leash.py PARENT FOLDER COMMAND...`; PARENT 0 means no leash. The kernel sends the
signal (Linux: prctl(2), PR_SET_PDEATHSIG), and does so when the *thread* that started us ends: start engines from a thread that
lives as long as they should. It may send it more than once, while one thread after the other ends, so it has to be SIGKILL.
Elsewhere there is no leash, and `parley engines down` ends what a killed process left.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def on_leash(command: Sequence[str], folder: Path, *, leashed: bool = True) -> list[str]:
    """Return what runs a command in a folder, to be killed with the thread that starts it if it is leashed."""
    return [sys.executable, "-I", __file__, str(os.getpid() if leashed else 0), str(folder), *command]


def main() -> None:
    parent, folder, *command = sys.argv[1:]
    if int(parent) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it ended before we asked
            sys.exit(1)
    os.chdir(folder)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
