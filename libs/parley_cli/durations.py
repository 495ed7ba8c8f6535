"""Durations as people type them: 90s, 15m, 12h, 30d."""

import re

import click

_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_SECONDS = 10 * 365 * 86_400  # a token or a wait beyond that is a slip of the finger


def duration(text: str) -> float:
    """Return seconds for a number with a unit (s, m, h, d; none: seconds). A click type."""
    match = re.fullmatch(r"(\d{1,10}(?:\.\d{1,3})?)([smhd]?)", text.strip())
    seconds = float(match[1]) * _UNIT_SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= _MAX_SECONDS:
        raise click.BadParameter(f"{text!r} is no duration: write for example 90s, 15m, 12h or 30d")
    return seconds
