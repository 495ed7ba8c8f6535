"""Figures of a benchmark: percentiles, progress on stderr, the result for people or as JSON."""

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import click

_PERCENTILES = (("p50", 0.50), ("p99", 0.99), ("p999", 0.999))
_LEAST_COLUMNS = 40  # for a value, however narrow the terminal


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p99, p999 and max of a sample of seconds, in milliseconds; None for all where there is no sample."""
    if not seconds:
        return dict.fromkeys([name for name, _ in _PERCENTILES] + ["max"])
    ordered = sorted(seconds)
    found = {name: round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3, 3) for name, share in _PERCENTILES}
    return {**found, "max": round(ordered[-1] * 1e3, 3)}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through points (x, y); 0 where x does not vary."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def progress(text: str) -> None:
    """Tell a waiting person what goes on; stdout stays the result's."""
    click.echo(text, err=True)


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object on one line, or a line a figure, which goes on below itself if a terminal is too narrow."""
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(len(name) for name in result)
    room = max(shutil.get_terminal_size().columns - width - 2, _LEAST_COLUMNS) if sys.stdout.isatty() else sys.maxsize
    for name, value in result.items():
        texts = value if value and isinstance(value, list) and isinstance(value[0], str) else [_text(value)]
        lines = [line for text in texts for line in textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)]
        for label, line in zip_longest([name], lines, fillvalue=""):
            click.echo(f"{label:<{width}}  {line}")
    sys.stdout.flush()


def _text(value: Any) -> str:
    match value:
        case Mapping():
            return "  ".join(f"{name} {_text(part)}" for name, part in value.items())
        case list():
            return " ".join(map(_text, value)) or "none"
        case bool():
            return "yes" if value else "no"
        case None:
            return "-"
        case _:
            return str(value)
