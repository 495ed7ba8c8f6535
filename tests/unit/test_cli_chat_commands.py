"""What a typed line means."""

import pytest

from parley_cli.chat_commands import (
    HELP,
    Conversations,
    GroupAdd,
    GroupCreate,
    GroupLeave,
    Help,
    History,
    Line,
    NotUnderstoodError,
    Quit,
    Say,
    To,
    Who,
    is_group_id,
    parse_line,
)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello", Say("hello")),
        (" /quoted", Say(" /quoted")),
        ("//etc/hosts", Say("/etc/hosts")),
        ("", None),
        ("   ", None),
        ("/to bob", To("bob")),
        ("/to 'the team'", To("the team")),
        ("/history", History(20)),
        ("/history 5", History(5)),
        ("/who", Who()),
        ("/list", Conversations()),
        ("/group create 'the team' bob carol", GroupCreate("the team", ("bob", "carol"))),
        ("/group add bob", GroupAdd(("bob",))),
        ("/group leave", GroupLeave()),
        ("/help", Help()),
        ("/quit", Quit()),
    ],
)
def test_a_line_means_what_it_says(line: str, meaning: Line | None) -> None:
    assert parse_line(line) == meaning


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nonsense", r"no command /nonsense \(/help lists them; //nonsense sends it\)"),
        ("/to bob\\", "close the quotes"),
        ("/", "no command /"),
        ("/to", "usage: /to"),
        ("/history none", "usage: /history"),
        ("/history 0", "usage: /history"),
        ("/group create alone", "usage: /group create"),
        ("/group add 'two words'", "can't be a user id"),
        ("/to 'bob", "close the quotes"),
    ],
)
def test_what_is_not_understood_is_explained_and_never_sent(line: str, says: str) -> None:
    with pytest.raises(NotUnderstoodError, match=says) as raised:
        parse_line(line)
    assert len(f"! {raised.value}") <= 80, "wrapped by a terminal in the middle of a word"


def test_a_group_is_known_by_the_shape_of_its_id() -> None:
    assert is_group_id("g_" + "a" * 26)
    assert not is_group_id("d_" + "a" * 26)
    assert not is_group_id("the team")


def test_the_help_fits_a_terminal_of_80_columns():
    assert max(map(len, HELP.splitlines())) < 80
