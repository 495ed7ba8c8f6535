"""What the store tells of conversations and their members, field by field, and what it refuses to tell."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from chassis.errors import InvalidArgument, NotFound
from parley.api.v1.commands_pb2 import AddMembers, ChangeSettings, RemoveMember, Role
from parley.api.v1.events_pb2 import Conversation, ConversationKind, Event, Interval, Member
from parley.api.v1.messaging_service_pb2 import (
    GetConversationRequest,
    ListEventsRequest,
    ListEventsResponse,
    ListMembersRequest,
    SyncRequest,
)
from parley.store.v1.store_service_pb2 import ListRecipientsResponse, Recipient
from parley_protocol.ids import direct_conversation_id
from services.store.reads import Reader, page_size_of
from services.store.recent import RecentEvents
from services.store.sync import Syncer
from tests.unit.store_scene import AB, T0, Scene, ack_record, act, group_scene, say
from tests.unit.store_tables import BUCKET_BITS, open_tables

NOWHERE = direct_conversation_id("nobody", "no one")


def team() -> Scene:
    """Alice's group: bob went at 3 and came back by 5, carol went for good by 7. Each event is a second after the one before."""
    scene = group_scene("bob", "carol", title="team")
    steps = [
        lambda: say(scene, "alice", 2),
        lambda: act(scene, "alice", 3, RemoveMember(user_id="bob")),
        lambda: say(scene, "alice", 4),
        lambda: act(scene, "alice", 5, AddMembers(user_ids=["bob"])),
        lambda: say(scene, "carol", 6),
        lambda: act(scene, "alice", 7, RemoveMember(user_id="carol")),
        lambda: say(scene, "alice", 8),
        lambda: scene.apply(ack_record("bob", scene.state.conversation_id, delivered=8, read=6)),
    ]
    for step in steps:
        scene.now_ms += 1000
        step()
    return scene


def two() -> Scene:
    scene = Scene(AB)
    say(scene, "alice", 1)
    say(scene, "bob", 2)
    say(scene, "bob", 3)
    scene.apply(ack_record("alice", AB, delivered=3, read=2))
    scene.apply(ack_record("bob", AB, delivered=1))
    return scene


@asynccontextmanager
async def open_reader(*scenes: Scene) -> AsyncIterator[Reader]:
    async with open_tables(*scenes) as tables:
        yield Reader(tables, RecentEvents(0), BUCKET_BITS)


def moment(log_ms: int) -> Timestamp:
    return Timestamp(seconds=log_ms // 1000)


async def test_a_member_sees_his_stays_and_what_he_has_not_read():
    scene = team()
    async with open_reader(scene) as reader:
        before = reader._timeline.count
        request = GetConversationRequest(conversation_id=scene.state.conversation_id)
        view = (await reader.get_conversation("bob", request)).conversation
        assert reader._timeline.count - before == 1, "the rows of the others are not read"
        assert view == Conversation(
            conversation_id=scene.state.conversation_id,
            kind=ConversationKind.CONVERSATION_KIND_GROUP,
            head_seq=8,
            message_count=4,
            delivered_seq=8,
            read_seq=6,
            unread_count=1,
            version=7,
            visible_intervals=[Interval(first_seq=1, last_seq=3), Interval(first_seq=5)],
            first_available_seq=1,
            title="team",
            member_count=2,
            role=Role.ROLE_MEMBER,
            last_time=moment(T0 + 7000),
        )


async def test_who_left_sees_the_conversation_as_it_was():
    scene = team()
    act(scene, "alice", 9, ChangeSettings(title="renamed"))
    act(scene, "alice", 10, AddMembers(user_ids=["dave"]))
    async with open_reader(scene) as reader:
        request = GetConversationRequest(conversation_id=scene.state.conversation_id)
        assert (await reader.get_conversation("carol", request)).conversation == Conversation(
            conversation_id=scene.state.conversation_id,
            kind=ConversationKind.CONVERSATION_KIND_GROUP,
            head_seq=7,
            message_count=3,
            unread_count=2,
            version=7,
            visible_intervals=[Interval(first_seq=1, last_seq=7)],
            first_available_seq=1,
            title="team",
            member_count=2,
            last_time=moment(T0 + 6000),
        )


async def test_of_a_conversation_of_two_each_sees_how_far_the_other_is():
    scene = two()
    async with open_reader(scene) as reader:
        view = (await reader.get_conversation("bob", GetConversationRequest(conversation_id=AB))).conversation
        assert (view.kind, view.conversation_id) == (ConversationKind.CONVERSATION_KIND_DIRECT, AB)
        assert (view.peer_user_id, view.peer_delivered_seq, view.peer_read_seq) == ("alice", 3, 2)
        synced = (await Syncer(reader._timeline, reader).sync("bob", SyncRequest())).conversations
        assert list(synced) == [view]


async def test_a_page_of_events_says_what_may_be_seen_and_how_far_it_goes():
    scene = team()
    async with open_reader(scene) as reader:
        request = ListEventsRequest(conversation_id=scene.state.conversation_id, page_size=6, after_seq=1)
        assert await reader.list_events("bob", request) == ListEventsResponse(
            events=[Event.FromString(scene.events[seq]) for seq in (2, 3, 5, 6, 7, 8)],
            visible_intervals=[Interval(first_seq=1, last_seq=3), Interval(first_seq=5)],
            first_available_seq=1,
            head_seq=8,
            more=False,
        ).SerializeToString(deterministic=True)


async def test_members_are_listed_with_what_they_are_in_pages():
    scene = group_scene("Ann", "bob", "carol")
    say(scene, "alice", 2)
    act(scene, "alice", 3, RemoveMember(user_id="carol"))
    act(scene, "alice", 4, AddMembers(user_ids=["dave"]))
    conversation = scene.state.conversation_id
    scene.apply(ack_record("bob", conversation, delivered=3, read=2))
    members = [
        Member(user_id="Ann", role=Role.ROLE_MEMBER, first_seq=1),
        Member(user_id="alice", role=Role.ROLE_OWNER, first_seq=1),
        Member(user_id="bob", role=Role.ROLE_MEMBER, first_seq=1, delivered_seq=3, read_seq=2),
        Member(user_id="dave", role=Role.ROLE_MEMBER, first_seq=4, delivered_seq=3, read_seq=3),
    ]
    async with open_reader(scene) as reader:
        for size in range(1, 6):
            found: list[Member] = []
            token = ""
            for _ in range(-(-len(members) // size)):
                request = ListMembersRequest(conversation_id=conversation, page_size=size, page_token=token)
                page = await reader.list_members("bob", request)
                found += page.members
                token = page.next_page_token
            assert (found, token) == (members, "")


async def test_routers_are_told_everybody_s_stays():
    scene = team()
    async with open_reader(scene) as reader:
        answer = await reader.list_recipients(scene.state.conversation_id)
        assert answer == ListRecipientsResponse(
            head_seq=8,
            recipients=[
                Recipient(user_id="alice", stays=[1, 0]),
                Recipient(user_id="bob", stays=[1, 3, 5, 0]),
                Recipient(user_id="carol", stays=[1, 7]),
            ],
        )
        assert await reader.list_recipients(NOWHERE) == ListRecipientsResponse()


@pytest.mark.parametrize(("user", "conversation"), [("eve", ""), ("alice", NOWHERE)], ids=["a stranger", "nothing there"])
async def test_strangers_learn_nothing(user, conversation):
    scene = team()
    conversation = conversation or scene.state.conversation_id
    async with open_reader(scene) as reader:
        for question in (
            reader.list_events(user, ListEventsRequest(conversation_id=conversation)),
            reader.get_conversation(user, GetConversationRequest(conversation_id=conversation)),
            reader.list_members(user, ListMembersRequest(conversation_id=conversation)),
        ):
            with pytest.raises(NotFound) as caught:
                await question
            assert caught.value.reason == "CONVERSATION_NOT_FOUND"
        assert not (await Syncer(reader._timeline, reader).sync("eve", SyncRequest())).conversations


async def test_what_the_api_does_not_offer_is_refused():
    scene = team()
    conversation = scene.state.conversation_id
    async with open_reader(scene) as reader:
        for question in (
            reader.list_events("alice", ListEventsRequest(conversation_id=conversation, after_seq=-1)),
            reader.list_events("alice", ListEventsRequest(conversation_id=conversation, before_seq=-1)),
            reader.list_events("alice", ListEventsRequest(conversation_id=conversation, page_size=-1)),
            reader.list_events("alice", ListEventsRequest(conversation_id="elsewhere")),
            reader.get_conversation("alice", GetConversationRequest(conversation_id="elsewhere")),
            reader.list_members("alice", ListMembersRequest(conversation_id="elsewhere")),
        ):
            with pytest.raises(InvalidArgument) as caught:
                await question
            assert caught.value.reason == "FIELD_INVALID"


def test_a_page_is_as_large_as_asked_within_its_bound():
    assert [page_size_of(asked, 50, 200) for asked in (0, 1, 200, 201)] == [50, 1, 200, 200]


async def test_pages_are_as_large_as_the_api_says():
    scene = group_scene(*(f"u{number:03}" for number in range(520)), member_cap=600)
    conversation = scene.state.conversation_id
    for number in range(2, 52):
        say(scene, "alice", number)
    async with open_reader(scene) as reader:
        for size, count in ((0, 100), (1000, 500)):
            page = await reader.list_members("alice", ListMembersRequest(conversation_id=conversation, page_size=size))
            assert (len(page.members), bool(page.next_page_token)) == (count, True)
        events = ListEventsResponse.FromString(await reader.list_events("alice", ListEventsRequest(conversation_id=conversation)))
        assert (len(events.events), events.more) == (50, True)
