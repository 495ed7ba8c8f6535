"""Commands and options that the documents name are there."""

import re
from pathlib import Path

import click
import pytest

from parley_cli.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CALL = re.compile(rf"(?:^|[`(/ ])parley ((?:{'|'.join(COMMANDS)})\b[^`\n]*)", re.MULTILINE)


def known(words: list[str]) -> set[str]:
    """Return the options of the command that a line begins with."""
    command: click.Command | None = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words and words[0] in command.list_commands(context):
        command = command.get_command(context, words.pop(0))
    assert command is not None
    return {option for parameter in command.get_params(context) for option in parameter.opts}


def test_help_is_known_and_what_is_none_is_not() -> None:
    assert {"--listen", "--help"} <= known(["up"])
    assert "--window" in known(["bench", "messages"])
    assert "--window" not in known(["bench", "group"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_that_a_document_names_is_there(path: Path) -> None:
    for line in CALL.findall(path.read_text()):
        assert set(re.findall(r"--[a-z][a-z-]*", line)) <= known(line.split()), line
