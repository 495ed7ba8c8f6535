"""A service as chaos runs it, on its sources: a gateway notes what only it can see, and whichever is named is broken on purpose.

`python -m parley_chaos.service`, with CHAOS_ROLE, CHAOS_NOTES (a folder) and CHAOS_BROKEN in the environment.
"""

import os
from importlib import import_module
from pathlib import Path

from parley_chaos.broken import BROKEN
from parley_chaos.notes import keep_notes


def main() -> None:
    """Run it; ends the process."""
    role, broken = os.environ["CHAOS_ROLE"], os.environ.get("CHAOS_BROKEN", "")
    if role == "gateway":
        keep_notes(Path(os.environ["CHAOS_NOTES"]))
    if broken:
        BROKEN[broken].apply()
    import_module(f"services.{role}.__main__").main()


if __name__ == "__main__":
    main()
