"""Records: what a judge needs is in them, whoever wrote them; what is none is refused."""

import json
import math
from pathlib import Path

import pytest
from clean_history import ALICE, CAROL, clean_history
from click.testing import CliRunner

from chassis.embedded import TABLES_FILE, hold_folder
from parley_checker.files import FormatError, hashed, lines_of, read_lines
from parley_checker.history import History, Shown
from parley_checker.judge import judge
from parley_checker.verdict import Fault
from parley_cli.__main__ import main


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


EVENT = {"conversation": "d_x", "seq": 1, "actor": ["a", "b"], "request": "00", "kind": "message"}


@pytest.mark.parametrize(
    "fact",
    [
        {"tables": "files", "event": EVENT | {"seq": 0}},
        {"tables": "files", "event": EVENT | {"seq": "1"}},
        {"tables": "files", "event": EVENT | {"kind": []}},
        {"tables": "files", "event": EVENT | {"joined": [["a"]]}},
        {"tables": "files", "event": EVENT | {"actor": [[], "b"]}},
        {"device": ["a", "b"], "ok": {"request": "00", "conversation": "d_x", "seq": math.inf}},
        {"device": ["a", "b"], "ok": {"request": "00", "conversation": "d_x", "seq": 2**64}},
        {"device": ["a", "b"], "ok": {"request": "00", "conversation": [], "seq": 1}},
        {"device": ["a", "b"], "settled": {"d_x": "1"}},
    ],
    ids=repr,
)
def test_a_fact_of_other_types_is_none(fact: dict[str, object]):
    with pytest.raises(FormatError, match="line 2"):
        read_lines(['{"history":1}\n', json.dumps(fact) + "\n"], History())


def test_a_seq_beyond_all_memory_is_judged_all_the_same():
    history = History()
    event = EVENT | {"seq": 2**63 - 1}
    facts = [
        {"tables": "files", "event": event},
        {"device": ["a", "b"], "shown": event, "run": 1},
        {"device": ["a", "b"], "settled": {}},
    ]
    read_lines(['{"history":1}\n', *(json.dumps(fact) + "\n" for fact in facts)], history)
    assert judge(history).faults[Fault.GAPS] == 2**63 - 2


def test_tables_are_judged_of_a_stopped_servers_folder_only(tmp_path: Path):
    record, data = tmp_path / "record.jsonl", tmp_path / "data"
    record.write_text('{"history":1}\n')
    data.mkdir()

    def error() -> str:
        told = CliRunner().invoke(main, ["check", str(record), "--data", str(data)])
        assert told.exit_code == 2
        return told.output

    assert "no tables" in error()
    assert list(data.iterdir()) == []
    (data / TABLES_FILE).write_bytes(b"no database")
    assert "can't be read" in error()
    with hold_folder(data):
        assert "stop that server first" in error()
