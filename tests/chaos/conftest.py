"""Chaos runs the `parley` command as the system tests do, with the same helpers."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "system"))
