"""Statements over many rows: a few of them prepared for all numbers of rows, in powers of two."""

import sqlite3
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

# Rows per statement. Each step releases and retakes the GIL, which costs more than a row; past 64 little is gained.
STATEMENT_ROWS: Final = 64


def multi_row(head: str, row: str, tail: str = "", *, separator: str = ", ") -> tuple[str, ...]:
    """Build a statement for 1, 2, 4, ... STATEMENT_ROWS rows: `head row, row, ... tail`. See `execute_rows` and `sized`."""
    return tuple(f"{head} {separator.join([row] * (1 << power))} {tail}" for power in range(STATEMENT_ROWS.bit_length()))


def execute_rows(connection: sqlite3.Connection, statements: Sequence[str], parameters: Sequence[object], width: int) -> None:
    """Execute `multi_row` statements over flat parameters, `width` a row, in chunks of powers of two: so few are prepared."""
    position, left = 0, len(parameters) // width
    while left:
        power = min(left.bit_length(), len(statements)) - 1
        end = position + (width << power)
        connection.execute(statements[power], parameters[position:end])
        position, left = end, left - (1 << power)


def sized(statements: Sequence[str], count: int) -> str:
    """Return the smallest of `multi_row` statements with room for `count` rows, to be filled up as `padded` does."""
    return statements[(count - 1).bit_length()]


def padded(items: Sequence[T]) -> Sequence[T]:
    """Repeat the last item until their number is a power of two, for statements where a repetition changes nothing."""
    missing = (1 << (len(items) - 1).bit_length()) - len(items)
    return [*items, *[items[-1]] * missing] if missing else items
