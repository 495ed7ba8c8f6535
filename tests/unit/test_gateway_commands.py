"""What a command must look like to enter the log."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import ServiceError
from parley.api.v1.commands_pb2 import (
    AddMembers,
    Attachment,
    ChangeRole,
    ChangeSettings,
    Command,
    CreateGroup,
    Leave,
    RemoveMember,
    SendMessage,
)
from parley.log.v1.records_pb2 import RawCommand
from parley_protocol.limits import RULES
from services.gateway.commands import check_command, check_request_id

RULES_1 = RULES[1]
GROUP = "g_" + "a" * 26
ID = b"i" * 16


def raw(**fields: Any) -> RawCommand:
    fields.setdefault("request_id", ID)
    return RawCommand.FromString(Command(**fields).SerializeToString())


def refusal(command: RawCommand) -> tuple[str, str]:
    with pytest.raises(ServiceError) as error:
        check_command(command, RULES_1)
    return error.value.code.name, error.value.reason


def direct(**message: Any) -> RawCommand:
    return raw(to_user_id="bob", send_message=SendMessage(**message))


def test_every_action_has_a_valid_form():
    for command in (
        direct(body=b"\x00\xff any bytes", content_type="text/plain", mentions=["bob"], reply_to_seq=1),
        direct(attachments=[Attachment(uri="https://x/y", content_type="image/png", size_bytes=1, sha256=b"s" * 32)]),
        raw(conversation_id=GROUP, send_message=SendMessage(body=b"x"), seen_seq=5),
        raw(create_group=CreateGroup(title="", member_user_ids=["bob", "bob"])),
        raw(conversation_id=GROUP, add_members=AddMembers(user_ids=["bob"])),
        raw(conversation_id=GROUP, remove_member=RemoveMember(user_id="bob")),
        raw(conversation_id=GROUP, leave=Leave()),
        raw(conversation_id=GROUP, change_role=ChangeRole(user_id="bob", role="ROLE_OWNER")),
        raw(conversation_id=GROUP, change_settings=ChangeSettings(title="")),
    ):
        check_command(command, RULES_1)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 10_000])
def test_request_id_has_sixteen_bytes(size: int):
    with pytest.raises(ServiceError):
        check_request_id(b"x" * size)
    check_request_id(b"x" * 16)


def test_limits_hold_at_their_edge():
    check_command(direct(body=b"x" * RULES_1.body_bytes), RULES_1)
    assert refusal(direct(body=b"x" * (RULES_1.body_bytes + 1))) == ("INVALID_ARGUMENT", "BODY_TOO_LARGE")
    check_command(direct(body=b"x", mentions=["bob"] * RULES_1.mentions), RULES_1)
    assert refusal(direct(body=b"x", mentions=["bob"] * (RULES_1.mentions + 1)))[1] == "FIELD_INVALID"
    check_command(direct(attachments=[Attachment(uri="u")] * RULES_1.attachments), RULES_1)
    assert refusal(direct(attachments=[Attachment(uri="u")] * (RULES_1.attachments + 1)))[1] == "FIELD_INVALID"
    check_command(raw(create_group=CreateGroup(title="é" * (RULES_1.title_bytes // 2))), RULES_1)
    assert refusal(raw(create_group=CreateGroup(title="é" * (RULES_1.title_bytes // 2) + "x")))[1] == "FIELD_INVALID"
    many = [f"u{number}" for number in range(RULES_1.users_per_action + 1)]
    check_command(raw(create_group=CreateGroup(member_user_ids=many[:-1])), RULES_1)
    assert refusal(raw(create_group=CreateGroup(member_user_ids=many)))[1] == "FIELD_INVALID"


@pytest.mark.parametrize("user", ["", "a b", "a\x00", "a\n", "\u202e", "é", "x" * 129, "x" * 10_000])
def test_user_ids_are_printable_ascii(user: str):
    commands = [
        direct(body=b"x", mentions=[user]),
        raw(create_group=CreateGroup(member_user_ids=[user])),
        raw(conversation_id=GROUP, add_members=AddMembers(user_ids=["bob", user])),
        raw(conversation_id=GROUP, remove_member=RemoveMember(user_id=user)),
        raw(conversation_id=GROUP, change_role=ChangeRole(user_id=user, role="ROLE_ADMIN")),
        raw(to_user_id=user, send_message=SendMessage(body=b"x")),
    ]
    assert {refusal(command)[1] for command in commands} == {"FIELD_INVALID"}


@pytest.mark.parametrize(
    "conversation_id", ["", "g_", "x" * 28, "g_" + "A" * 26, "g_" + "1" * 26, "d_" + "a" * 27, "g_" + "\n" * 26]
)
def test_conversation_ids_have_their_shape(conversation_id: str):
    assert refusal(raw(conversation_id=conversation_id, leave=Leave()))[1] == "FIELD_INVALID"


@pytest.mark.parametrize(
    "command",
    [
        direct(),
        raw(send_message=SendMessage(body=b"x")),
        raw(conversation_id=GROUP, add_members=AddMembers()),
        raw(conversation_id=GROUP, change_settings=ChangeSettings()),
        raw(to_user_id="bob"),
        direct(attachments=[Attachment()]),
    ],
)
def test_what_must_be_there_is_asked_for(command: RawCommand):
    assert refusal(command) == ("INVALID_ARGUMENT", "FIELD_MISSING")


@pytest.mark.parametrize(
    "command",
    [
        direct(body=b"x", reply_to_seq=-1),
        direct(body=b"x", content_type="text\n"),
        direct(body=b"x", content_type="x" * 129),
        direct(attachments=[Attachment(uri="u" * 2049)]),
        direct(attachments=[Attachment(uri="u", size_bytes=-1)]),
        direct(attachments=[Attachment(uri="u", sha256=b"short")]),
        raw(conversation_id=GROUP, send_message=SendMessage(body=b"x"), seen_seq=-1),
        raw(conversation_id=GROUP, create_group=CreateGroup()),
        raw(create_group=CreateGroup(title="a\x07b")),
        raw(conversation_id=GROUP, change_role=ChangeRole(user_id="bob")),
        raw(conversation_id=GROUP, change_role=ChangeRole(user_id="bob", role=99)),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(command: RawCommand):
    assert refusal(command) == ("INVALID_ARGUMENT", "FIELD_INVALID")


def test_unknown_action_is_unsupported_and_unknown_fields_beside_a_known_one_pass():
    unknown_field = b"\xa2\x06\x02hi"  # number 100, 2 bytes
    assert refusal(RawCommand.FromString(raw(to_user_id="bob").SerializeToString() + unknown_field)) == (
        "UNIMPLEMENTED",
        "ACTION_UNSUPPORTED",
    )
    known = direct(body=b"x").SerializeToString() + unknown_field
    command = RawCommand.FromString(known)
    check_command(command, RULES_1)
    assert unknown_field in command.SerializeToString()


def test_unparsable_action_is_malformed():
    command = RawCommand(request_id=ID, to_user_id="bob", send_message=b"\xff\xff\xff")
    assert refusal(command) == ("INVALID_ARGUMENT", "MALFORMED")


def test_action_over_the_limit_of_all_is_not_even_parsed():
    command = RawCommand(request_id=ID, conversation_id=GROUP, leave=b"\xff" * (RULES_1.command_bytes + 1))
    assert refusal(command)[1] == "BODY_TOO_LARGE"


@given(st.binary(max_size=300), st.sampled_from([field.name for field in RawCommand.DESCRIPTOR.oneofs_by_name["action"].fields]))
def test_any_bytes_are_taken_or_refused_with_a_reason(encoded: bytes, action: str):
    """Nothing but an expected error comes out, whatever goes in."""
    target = {} if action == "create_group" else {"conversation_id": GROUP}
    command = RawCommand(request_id=ID, **target, **{action: encoded})  # type: ignore[arg-type]
    with suppress(ServiceError):
        check_command(command, RULES_1)
