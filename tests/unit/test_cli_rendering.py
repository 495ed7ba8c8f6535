"""Events as lines and as JSON."""

import base64
import json
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parley.api.v1 import commands_pb2, events_pb2
from parley_cli.rendering import describe, harmless, json_line, json_of, line_of, one_line


def message_event(body: bytes, content_type: str = "") -> events_pb2.Event:
    event = events_pb2.Event(conversation_id="d_x", seq=3, actor_user_id="alice", actor_device_id="cli", request_id=b"\x01" * 16)
    event.message.body = body
    event.message.content_type = content_type
    event.time.seconds = 86_400
    return event


def test_a_message_is_one_line_with_its_place_time_and_sender() -> None:
    assert line_of(message_event(b"hello"), UTC) == "#3 1970-01-02 00:00:00 alice: hello"


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\rb", "\x9b31m", "\u202egnp.exe", "\x07", "\u2066"])
def test_nothing_in_a_body_commands_the_terminal(hostile: str) -> None:
    assert all(char.isprintable() for char in describe(message_event(hostile.encode())))


@given(st.text())
def test_harmless_text_holds_only_printable_characters_tabs_and_indented_breaks(text: str) -> None:
    shown = harmless(text).replace("\n      ", "").replace("\t", "")
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u202e\u2066\u2028" for char in shown)


def test_right_to_left_text_and_emoji_are_shown_as_they_are() -> None:
    assert describe(message_event("שלום 👩‍🚀".encode())) == "שלום 👩‍🚀"


def test_what_is_not_text_is_named() -> None:
    assert describe(message_event(b"\xff\x00")) == "(2 bytes of no text)"
    assert describe(message_event(b"abc", "image/png")) == "(3 bytes of image/png)"


def test_one_line_is_cut_to_its_width() -> None:
    assert one_line("a\nb" + "c" * 50, 8) == "a bcccc…"


@given(st.binary(min_size=1))
def test_json_gives_back_every_body_exactly(body: bytes) -> None:
    document = json_of(message_event(body))
    assert (document["text"].encode() if "text" in document else base64.b64decode(document["body_base64"])) == body


@given(st.text())
def test_a_line_of_json_is_exact_and_commands_no_terminal(text: str) -> None:
    event = message_event(text.encode(errors="replace"))
    assert json.loads(json_line(event)) == json_of(event)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u202e\u2066\u2028" for char in json_line(event))


def test_a_line_of_json_keeps_letters_and_emoji() -> None:
    assert '"text": "שלום 👩‍🚀"' in json_line(message_event("שלום 👩‍🚀".encode()))


def test_content_of_a_later_version_is_shown_as_unsupported() -> None:
    event = events_pb2.Event(seq=1)
    event.MergeFromString(b"\xea\x01\x00")  # field 29, empty
    assert json_of(event)["kind"] == "unsupported"
    assert "does not know" in describe(event)


def test_every_kind_of_event_has_words_and_json() -> None:
    kinds = [field.name for field in events_pb2.Event.DESCRIPTOR.oneofs_by_name["content"].fields]
    for kind in kinds:
        event = events_pb2.Event(actor_user_id="alice")
        getattr(event, kind).SetInParent()
        assert json_of(event)["kind"] == kind
        assert kind == "message" or describe(event).startswith("* alice ")


def test_a_role_that_is_not_known_counts_as_member() -> None:
    event = events_pb2.Event(actor_user_id="alice")
    event.role_changed.user_id = "bob"
    event.role_changed.role = 77  # type: ignore[assignment]
    assert describe(event) == "* alice made bob member"
    event.role_changed.role = commands_pb2.ROLE_ADMIN
    assert json_of(event)["role"] == "admin"
