"""`parley chat`: two people talk, over pipes and in terminals."""

import re
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from parley_process import Parley, Server, run

CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server
        if server.running:
            server.signal(signal.SIGTERM)
            assert server.wait(5) == 0


def chat(server: Server, *arguments: str, terminal: bool = False) -> Parley:
    return Parley("chat", *arguments, *server.client_options, home=server.home, terminal=terminal)


def test_two_users_talk_and_see_their_ticks_turn(server: Server) -> None:
    with chat(server, "alice", "--with", "bob") as alice, chat(server, "bob", "--with", "alice") as bob:
        alice.expect("connected to .* as alice")
        bob.expect("connected to .* as bob")
        alice.type("hello\n")
        alice.expect(r"^#1 \d\d:\d\d alice: hello ✓$")
        bob.expect(r"^#1 \d\d:\d\d alice: hello$")
        alice.expect("✓✓ read up to #1")
        bob.type("hello yourself\n")
        alice.expect(r"^#2 \d\d:\d\d bob: hello yourself$")
        bob.expect("✓✓ read up to #2")
        for side in (alice, bob):
            side.type("/quit\n")
            assert side.wait() == 0


def test_a_message_to_somebody_who_is_not_there_is_delivered_when_he_comes(server: Server) -> None:
    with chat(server, "alice", "--with", "bob") as alice:
        alice.expect("connected")
        alice.type("are you there?\n")
        alice.expect(r"alice: are you there\? ✓$")
        with chat(server, "bob") as bob:
            bob.expect("1 unread in alice")
            alice.expect("✓✓ delivered up to #1")
            bob.type("/to alice\n")
            bob.expect("alice: are you there")
            alice.expect("✓✓ read up to #1")


def test_what_is_typed_while_the_server_is_away_is_sent_when_it_is_back(server: Server) -> None:
    with chat(server, "alice", "--with", "bob") as alice, chat(server, "bob", "--with", "alice") as bob:
        alice.expect("connected")
        alice.type("one\n")
        bob.expect("alice: one")
        server.kill()
        alice.expect("reconnecting…")
        alice.type("/who\ntwo\nthree\n")
        alice.expect("can't ask the server now: it is away")
        with Server(server.data, listen=server.address):
            alice.expect("connected again")
            alice.expect("#2 .* two ✓")
            alice.expect("#3 .* three ✓")
            bob.expect("alice: two")
            bob.expect("alice: three")


def test_what_was_not_sent_goes_out_when_the_chat_is_started_again(server: Server) -> None:
    with chat(server, "alice", "--with", "bob") as alice:
        alice.expect("connected")
        server.kill()
        alice.expect("reconnecting…")
        alice.type("kept\n")
        alice.end_input()
        alice.expect("1 not sent yet: kept")
        assert alice.wait() == 0
    with Server(server.data, listen=server.address), chat(server, "alice", "--with", "bob") as alice:
        alice.expect("alice: kept ✓")


def test_a_chat_begins_with_its_history_and_shows_more_on_demand(server: Server) -> None:
    with chat(server, "alice", "--with", "bob") as alice:
        alice.expect("connected")
        alice.type("".join(f"line {number}\n" for number in range(1, 41)))
        alice.expect("line 40 ✓")
    with chat(server, "bob", "--with", "alice") as bob:
        bob.expect("#21 .* line 21$")
        bob.expect("#40 .* line 40$")
        assert "line 20" not in bob.stdout.text
        bob.type("/history 30\n")
        bob.expect("#1 .* line 1$")
        bob.expect("#20 .* line 20$")
        bob.type("/history\n")
        bob.expect("that was the beginning")


def test_a_group_is_made_grows_and_is_left(server: Server) -> None:
    with chat(server, "alice") as alice, chat(server, "bob") as bob, chat(server, "carol") as carol:
        for side in (alice, bob, carol):
            side.expect("connected")
        alice.type("/group create 'the team' bob\n")
        alice.expect("alice created the group “the team” with alice, bob")
        group = bob.expect(r"“the team” \((g_[a-z2-7]{26})\)")[1]
        bob.type("/to 'the team'\n")
        alice.type("/group add carol\n")
        alice.expect(r"\* alice added carol")
        bob.expect(r"\* alice added carol")
        carol.expect(group)
        carol.type(f"/to {group}\nhi all\n")
        alice.expect("carol: hi all")
        bob.expect("carol: hi all")
        carol.expect("✓✓ read up to #3")
        alice.type("/who\n")
        alice.expect("alice: online, owner")
        alice.expect("carol: online, member, has up to #3, read up to #3")
        bob.type("/group leave\n")
        alice.expect(r"\* bob left")
        alice.type("/list\n")
        alice.expect(r"“the team” .*#4")


def test_a_new_conversation_says_that_it_is_one_and_a_new_group_bears_its_title(server: Server) -> None:
    with chat(server, "alice", "--with", "bob") as alice:
        alice.expect(r"── bob ──\nnothing has been said here yet$")
        alice.type("/who\n")
        alice.expect("^! nothing has been said here yet$")
        alice.type("/group create 'the team' bob\n")
        alice.expect("^── the team ──$")
        alice.type("/who\n")
        alice.expect("^bob: offline, member, has nothing yet$")
    with chat(server, "bob", "--group", "the team") as bob:
        bob.type("/group add carol\n")
        bob.expect("^! not done: only the owner and admins add members$")


def test_lines_that_are_no_messages_are_answered(server: Server) -> None:
    answers = {
        "/help": "/group create TITLE USER",
        "/nonsense": "! there is no command /nonsense",
        "hello": "! to whom",
        "/to 'no such group'": "! no group is called",
        "/group leave": "! this is no group",
        "/history": "! of which conversation",
        "/list": "no conversations yet",
    }
    with chat(server, "alice") as alice:
        alice.type("".join(f"{line}\n" for line in answers))
        for answer in answers.values():
            alice.expect(re.escape(answer))
        alice.end_input()
        assert alice.wait() == 0


def test_a_refused_command_is_explained(server: Server) -> None:
    with chat(server, "alice") as alice, chat(server, "bob") as bob:
        bob.expect("connected")
        alice.expect("connected")
        alice.type("/group create team bob\n")
        group = bob.expect(r"\((g_[a-z2-7]{26})\)")[1]
        bob.type(f"/to {group}\n/group add carol\n")
        bob.expect("! not done: ")


def test_no_key_and_no_server_are_told_plainly(tmp_path: Path) -> None:
    code, out, err = run("chat", "alice", "--data", str(tmp_path / "none"), home=tmp_path)
    assert (code, out) == (2, "")
    assert "run `parley up` first" in err
    assert not (tmp_path / "none").exists()
    for command in (
        ["chat", "alice"],
        ["send", "--as", "alice", "--to", "bob", "hi"],
        ["history", "--as", "alice", "--with", "bob"],
    ):
        code, out, err = run(*command, "--server", "127.0.0.1:1", home=tmp_path, env={"PARLEY_TOKEN": "x"})
        assert code == 1
        assert "Error: no server answers at 127.0.0.1:1: is `parley up` running there?" in err


def test_one_device_chats_once(server: Server) -> None:
    with chat(server, "alice") as alice:
        alice.expect("connected")
        code, _, err = server.run("chat", "alice")
        assert code == 2
        assert "alice chats on device cli already" in err


def test_somebody_elses_token_is_noticed(server: Server) -> None:
    code, token, _ = run("token", "bob", "--data", str(server.data), home=server.home)
    assert code == 0
    with chat(server, "bob") as bob:
        bob.expect("connected")
        for command in (
            ["chat", "alice"],
            ["send", "--as", "alice", "--to", "carol", "in whose name?"],
            ["history", "--as", "alice", "--with", "carol"],
        ):
            code, _, err = server.run(*command, env={"PARLEY_TOKEN": token.strip()})
            assert (code, err) == (1, "Error: the token is bob's, not alice's\n")
        bob.type("/list\n")  # still there: nobody connected as this device of his
        bob.expect("no conversations yet")


def test_bodies_come_back_as_they_were_sent(server: Server) -> None:
    bodies = ["שלום 👩‍🚀".encode(), b"a\x00b\x1b[31m", b"\xff\xfe"]
    for body in bodies:
        assert server.run("send", "--as", "alice", "--to", "bob", "-", stdin=body)[0] == 0
    code, out, err = server.run("history", "--as", "bob", "--with", "alice", "--json")
    assert (code, err) == (0, "")
    assert re.findall(r'"(?:text|body_base64)": ("[^\n]*?")[},]', out) == ['"שלום 👩‍🚀"', '"a\\u0000b\\u001b[31m"', '"//4="']
    code, out, err = server.run("history", "--as", "bob", "--with", "alice")
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


def test_a_send_is_repeated_safely(server: Server) -> None:
    request = ["--request-id", "00" * 16]
    assert server.run("send", "--as", "alice", "--to", "bob", "once", *request)[1].startswith("#1 in d_")
    assert "it was there already" in server.run("send", "--as", "alice", "--to", "bob", "once", *request)[1]
    code, _, err = server.run("send", "--as", "alice", "--to", "bob", "other", *request)
    assert code == 1
    assert "REQUEST_ID_REUSED" in err


class TestTerminal:
    """What a person sees."""

    def test_incoming_lines_never_break_the_one_that_is_typed(self, server: Server) -> None:
        with chat(server, "alice", "--with", "bob", terminal=True) as alice:
            alice.expect("alice → bob >")
            alice.type("half a li")
            alice.expect("half a li")
            server.run("send", "--as", "bob", "--to", "alice", "interrupting")
            alice.expect("bob: interrupting")
            alice.expect(r"alice → bob > half a li")
            alice.type("ne" + ENTER)
            alice.expect("alice: half a line ✓")
            alice.type(CTRL_D)
            assert alice.wait() == 0

    def test_ticks_turn_below_the_prompt(self, server: Server) -> None:
        with chat(server, "alice", "--with", "bob", terminal=True) as alice:
            alice.expect("alice → bob >")
            alice.type("hello" + ENTER)
            alice.expect("│ ✓ #1 hello")
            with chat(server, "bob", terminal=True) as bob:
                bob.expect("bob >")
                alice.expect("✓✓ delivered up to #1")
                alice.expect("│ ✓✓ #1 hello")
                bob.type("/to alice" + ENTER)
                alice.expect("✓✓ read up to #1")

    def test_ctrl_c_drops_the_line_and_leaves_where_there_is_none(self, server: Server) -> None:
        with chat(server, "alice", "--with", "bob", terminal=True) as alice:
            alice.expect("alice → bob >")
            alice.type("never mind")
            alice.expect("never mind")
            alice.type(CTRL_C)
            alice.type("said" + ENTER)
            alice.expect("alice: said ✓")
            alice.type(CTRL_C)
            assert alice.wait() == 0
        assert "never mind" not in server.run("history", "--as", "alice", "--with", "bob")[1]

    def test_it_works_over_a_restart_of_the_server(self, server: Server) -> None:
        with chat(server, "alice", "--with", "bob", terminal=True) as alice:
            alice.expect("alice → bob >")
            server.kill()
            alice.expect("reconnecting…")
            alice.type("patience" + ENTER)
            alice.expect("⧗ patience")
            with Server(server.data, listen=server.address):
                alice.expect("connected again")
                alice.expect("alice: patience ✓")

    def test_a_signal_leaves_the_terminal_as_it_was(self, server: Server) -> None:
        with chat(server, "alice", terminal=True) as alice:
            alice.expect("alice >")
            alice.type("x")
            alice.expect("x")
            alice.signal(signal.SIGTERM)
            assert alice.wait() == 128 + signal.SIGTERM
            assert alice.terminal_echoes


def test_what_is_piped_in_is_shown_when_it_is_stored(server: Server) -> None:
    lines = "".join(f"line {number}\n" for number in range(1, 301))
    code, out, err = server.run("chat", "alice", "--with", "bob", stdin=lines.encode())
    assert (code, err) == (0, "")
    assert re.findall(r"^#(\d+) .* line (\d+) ✓$", out, re.MULTILINE) == [(str(n), str(n)) for n in range(1, 301)]
    assert "not sent" not in out


def test_a_chat_with_oneself_has_a_name(server: Server) -> None:
    with chat(server, "alice", "--with", "alice") as alice:
        alice.type("a note\n")
        alice.expect("#1 .* alice: a note")
        alice.type("/list\n")
        alice.expect(r"^alice #1$")


def test_nobody_else_may_read_what_was_said(server: Server) -> None:
    shared = server.home / "shared"
    shared.mkdir(mode=0o755)
    with Server(shared) as other:
        assert other.run("chat", "alice", "--with", "bob", stdin=b"hello\n")[0] == 0
        files = [path for path in shared.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"commands.db", "tables.db", "commands.db-wal", "token-key.pem", "lock"}
        assert [path for path in files if path.stat().st_mode & 0o077] == []


def test_the_state_lies_where_it_was_asked_for(server: Server) -> None:
    state = server.home / "state"
    assert server.run("chat", "alice", "--with", "bob", "--state", str(state), stdin=b"hello\n")[0] == 0
    (file,) = state.glob("alice-cli-*.db")
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (1,)
    database.close()
