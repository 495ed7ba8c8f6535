"""Ids of conversations, and what may be an id at all."""

import pytest

from parley_protocol.ids import MAX_ID_BYTES, direct_conversation_id, group_conversation_id, is_app_id, is_conversation_id


def test_a_conversations_id_is_the_same_for_good():
    """Timelines are stored under it, and both sides of a 1-1 compute it."""
    assert direct_conversation_id("alice", "bob") == "d_p7zntsgquqyenvjhahiqizsw3i"
    assert direct_conversation_id("bob", "alice") == "d_p7zntsgquqyenvjhahiqizsw3i"
    assert group_conversation_id("alice", "phone", b"r" * 16) == "g_x6vnvnsvlcwh3bfrzmju6bb7ie"


def test_each_creation_makes_a_group_of_its_own():
    creations = [
        ("alice", "phone", b"r" * 16),
        ("alice", "phone", b"s" * 16),
        ("alice", "laptop", b"r" * 16),
        ("bob", "phone", b"r" * 16),
        ("alicep", "hone", b"r" * 16),
    ]
    ids = {group_conversation_id(*creation) for creation in creations}
    assert len(ids) == len(creations)
    assert all(map(is_conversation_id, ids))


@pytest.mark.parametrize("text", ["a", "~!", "x" * MAX_ID_BYTES])
def test_an_app_s_id_is_printable_ascii_up_to_its_bound(text: str):
    assert MAX_ID_BYTES == 128
    assert is_app_id(text)
    assert not is_app_id(text + "\x7f")


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", " ", "é", "a\n"])
def test_other_texts_are_no_ids(text: str):
    assert not is_app_id(text)


@pytest.mark.parametrize("at", [2, 3, 27])
def test_every_place_of_a_conversations_id_is_looked_at(at: int):
    assert is_conversation_id("g_" + "a7" * 13)
    for wrong in "AX1_":
        text = "d_" + "a" * 26
        assert not is_conversation_id(text[:at] + wrong + text[at + 1 :])
