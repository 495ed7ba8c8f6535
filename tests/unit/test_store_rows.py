"""Rows that need not appear together go in pieces that engines take."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chassis.timeline import PARTITION_WRITE_BYTES, Row
from services.store.rows import pieces


def row(size: int) -> Row:
    return Row("timeline", "c/0", b"12345678", bytes(size), 1)


@given(st.lists(st.integers(0, 300)))
def test_pieces_are_all_rows_in_order_and_none_is_too_large(sizes: list[int]) -> None:
    rows = [row(size) for size in sizes]
    found = list(pieces(rows, 200))
    assert [row for piece in found for row in piece] == rows
    assert all(len(piece) == 1 or sum(len(row.key) + len(row.value) for row in piece) <= 200 for piece in found)
    for piece, following in pairwise(found):  # no more of them than are needed
        assert sum(len(row.key) + len(row.value) for row in [*piece, following[0]]) > 200


def test_a_poll_of_the_largest_messages_is_cut_and_an_ordinary_one_is_not() -> None:
    assert [len(piece) for piece in pieces([row(100)] * 500)] == [500]
    cut = list(pieces([row(16 * 1024)] * 500))
    assert len(cut) == 4
    assert all(sum(len(row.key) + len(row.value) for row in piece) <= PARTITION_WRITE_BYTES for piece in cut)
    assert list(pieces([])) == []
