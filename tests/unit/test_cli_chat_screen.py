"""Lines from what may stand at a command's stdin."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from parley_cli.chat_screen import PlainScreen


@pytest.fixture
def stdin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    path = Path(os.devnull)
    if request.param is not None:
        path = tmp_path / "lines"
        path.write_bytes(request.param)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield file


@pytest.mark.parametrize(
    ("stdin", "lines"),
    [(None, []), (b"", []), (b"one\ntwo\r\n\nlast", ["one", "two", "", "last"]), (b"\xff\n", ["\ufffd"])],
    indirect=["stdin"],
)
@pytest.mark.usefixtures("stdin")
async def test_a_file_is_read_to_its_end_and_nothing_is_one(lines: list[str]) -> None:
    assert [line async for line in PlainScreen().lines(list, list)] == lines
