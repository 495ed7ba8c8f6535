"""Records: what a judge needs is in them, whoever wrote them; what is none is refused."""

import pytest
from clean_history import ALICE, CAROL, clean_history

from parley_checker.files import FormatError, hashed, lines_of, read_lines
from parley_checker.history import History, Shown
from parley_checker.judge import judge


def test_a_record_reads_back_as_it_was_but_for_bodies():
    history = clean_history()
    recorded = History()
    read_lines(lines_of(history), recorded)
    again = History()
    lines = list(lines_of(recorded))
    read_lines(lines, again)
    assert judge(recorded) == judge(history)
    assert recorded.devices[CAROL].asked == history.devices[CAROL].asked
    shown = [Shown(run, entry._replace(body=hashed(entry.body))) for run, entry in history.devices[CAROL].shown]
    assert recorded.devices[CAROL].shown == shown
    assert recorded.devices[ALICE].views == history.devices[ALICE].views
    assert not any(b"pong".hex() in line or "pong" in line for line in lines)


def test_several_files_are_one_history_and_half_a_last_line_is_nothing():
    lines = list(lines_of(clean_history()))
    some, rest = [line for line in lines if "alice" in line], [line for line in lines[1:] if "alice" not in line]
    recorded = History()
    read_lines([lines[0], *some], recorded)
    read_lines([lines[0], *rest, rest[-1][:-5]], recorded)
    assert {device.user_id for device in recorded.devices} == {"alice", "bob", "carol"}


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (["{}\n"], "line 1"),
        (['{"history":2}\n'], "line 1"),
        (["no JSON"], "line 1"),
        (['{"history":1}\n', '{"device":["a","b"],"sang":{}}\n'], "line 2"),
        (['{"history":1}\n', '{"device":["a","b"],"ok":{"request":"zz","conversation":"c","seq":1}}\n'], "line 2"),
        (['{"history":1}\n', '{"tables":"files","event":{"seq":1}}\n'], "line 2"),
        (['{"history":1}\n', "cut of\n", '{"tables":"files"}\n'], "line 2"),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(lines: list[str], where: str):
    with pytest.raises(FormatError, match=where):
        read_lines(lines, History())
