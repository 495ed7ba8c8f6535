"""What takes bytes from outside, each as a function of bytes: it must end, and raise nothing but what it documents.

Run by test_targets.py for a second with bytes that hypothesis makes, by coverage_guided.py (`make fuzz`) for as long as asked.
"""

import json
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import DecodeError

from chassis.clock import SystemClock
from chassis.errors import ServiceError, Unauthenticated
from chassis.eventlog import LogRecord
from chassis.testing.timeline_memory import MemoryTimeline, Tables, written
from parley.api.v1 import messaging_service_pb2 as api
from parley.api.v1.commands_pb2 import AddMembers, ChangeRole, Command, CreateGroup, RemoveMember, Role, SendMessage
from parley.api.v1.events_pb2 import Ack, Conversation, Interval
from parley.gateway.v1.frames_pb2 import RawConnectRequest
from parley.log.v1.records_pb2 import CommandRecord, EventBatch, EventRecord
from parley.store.v1.store_service_pb2 import ListRecipientsResponse
from parley_checker.files import FormatError, read_lines
from parley_checker.history import History
from parley_checker.judge import judge
from parley_client.device_state import DeviceState, Step
from parley_client.errors import ClientError
from parley_client.store_memory import MemoryStore
from parley_protocol.frames import EVENT_TAG, field
from parley_protocol.ids import direct_conversation_id, group_conversation_id
from parley_protocol.limits import RULES, RULES_VERSION
from services.gateway.commands import check_command, check_request_id
from services.gateway.keys import mint_token
from services.gateway.records import command_record as encoded_record
from services.gateway.records import origin_fields
from services.gateway.tokens import KeyRing, KeysFileError, TokenVerifier, parse_keys, verifying_key
from services.router.recipients import Group, GroupCache
from services.store import rows
from services.store.config import StoreSettings
from services.store.page_tokens import decode_page_token, encode_page_token
from services.store.reads import Reader
from services.store.recent import RecentEvents
from services.store.sync import Syncer
from tests.unit.store_scene import T0, Scene, ack_record, command_record
from tests.unit.store_stepper import Answer, Read, Stepper, Write

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """One entry that takes bytes."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]  # good input, to begin with
    slow: bool = False


targets: dict[str, Target] = {}


def target(*seeds: bytes, slow: bool = False) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Register a target under its function's name."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        targets[run.__name__] = Target(run, seeds, slow)
        return run

    return register


def done(work: Coroutine[Any, Any, T]) -> T:
    """Run what waits for nothing but a turn of the loop."""
    try:
        while True:
            work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]


KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
AB = direct_conversation_id("alice", "bob")
CREATE = command_record("alice", CreateGroup(title="team", member_user_ids=["bob"]), number=1)
GROUP = CREATE.conversation_id
GIVEN = [CREATE, command_record("alice", SendMessage(body=b"hi"), number=2, to="bob")]
RECORDS = [
    *GIVEN,
    command_record("bob", SendMessage(body=b"re", reply_to_seq=1), number=3, to="alice", seen_seq=1),
    command_record("alice", AddMembers(user_ids=["carol"]), number=4, conversation=GROUP),
    command_record("alice", RemoveMember(user_id="bob"), number=5, conversation=GROUP),
    command_record("alice", ChangeRole(user_id="bob", role=Role.ROLE_OWNER), number=6, conversation=GROUP),
    ack_record("bob", GROUP, delivered=1, read=1),
]


def log_of(values: Sequence[bytes]) -> list[LogRecord]:
    """Return records as a partition holds them, each under the key that it names itself."""
    found = []
    for offset, value in enumerate(values):
        key = b"?"
        with suppress(DecodeError):
            key = CommandRecord.FromString(value).conversation_id.encode()
        found.append(LogRecord(offset, T0 + offset, key, value))
    return found


_STEPPER = Stepper((), StoreSettings(bucket_bits=1))


def applied(values: Sequence[bytes], tables: Tables, first: int = 0) -> Tables:
    """Let a store apply records one by one from offset `first` on, and return its tables. Raises BrokenError if it stops."""
    _STEPPER.records, memory = log_of(values), b""
    for offset in range(first, len(values)):
        answers: list[Answer] = []
        while (run := _STEPPER.run(memory, offset, 1, answers)).request is not None:
            answer: Any = None
            if isinstance(run.request, Read):
                answer = done(getattr(MemoryTimeline(rows.TABLES, tables), run.request.method)(*run.request.arguments))
            elif isinstance(run.request, Write):
                tables = written(tables, [row for group in run.request.groups for row in group])
            answers.append(answer)
        assert run.done, "the offset must pass"
        memory = run.memory
    return tables


def frame(*commands: Command, **fields: Any) -> bytes:
    return api.ConnectRequest(batch=api.DeviceBatch(first_command_number=1, commands=commands, **fields)).SerializeToString()


def command(action: Any, number: int = 1, **fields: Any) -> Command:
    made = Command(request_id=number.to_bytes(16, "big"), **fields)
    name = next(one.name for one in Command.DESCRIPTOR.oneofs_by_name["action"].fields if one.message_type is action.DESCRIPTOR)
    getattr(made, name).CopyFrom(action)
    return made


_ORIGIN = origin_fields(user_id="alice", device_id="d1", gateway_id="g1", session_id="s1", member_cap=500)


@target(
    frame(command(SendMessage(body=b"hi", content_type="text/plain", mentions=["bob"], reply_to_seq=1), to_user_id="bob")),
    frame(command(CreateGroup(title="t", member_user_ids=["bob", "carol"]))),
    frame(command(AddMembers(user_ids=["carol"]), conversation_id=GROUP), command(SendMessage(body=b"x"), 2, conversation_id=AB)),
    frame(command(ChangeRole(user_id="bob", role=Role.ROLE_ADMIN), conversation_id=GROUP)),
    frame(acks=[Ack(conversation_id=GROUP, delivered_seq=1, read_seq=1)]),
    api.ConnectRequest(hello=api.Hello(device_id="d1", client="c")).SerializeToString(),
)
def device_frame(data: bytes) -> None:
    """A frame: what a gateway takes of it, a store decides, and every device and page can parse."""
    try:
        request = RawConnectRequest.FromString(data)
    except DecodeError:
        return
    for raw in request.batch.commands:
        try:
            check_request_id(raw.request_id)
            check_command(raw, RULES[RULES_VERSION])
        except ServiceError:
            continue
        conversation_id = raw.conversation_id
        if raw.WhichOneof("action") == "create_group":
            conversation_id = group_conversation_id("alice", "d1", raw.request_id)
        elif raw.to_user_id:
            conversation_id = direct_conversation_id("alice", raw.to_user_id)
        record = CommandRecord.FromString(encoded_record(_ORIGIN, conversation_id.encode(), raw.SerializeToString()))
        scene = Scene(conversation_id)
        if conversation_id == GROUP:
            scene.apply(CREATE)
        effect = scene.apply(record)  # raises UndecidableError, DecodeError or worse: the gateway must not have taken it
        if effect is not None and effect.event:
            api.ServerBatch.FromString(effect.shared + effect.own)
            page = field(b"\x0a", effect.event)
            assert len(api.ListEventsResponse.FromString(page).events) == 1
            api.SyncResponse.FromString(field(b"\x0a", field(b"\x92\x01", effect.event)))
    for ack in request.batch.acks:
        with suppress(UnicodeEncodeError):
            Scene(GROUP).apply(ack_record("alice", ack.conversation_id, delivered=ack.delivered_seq, read=ack.read_seq))


_GIVEN = [record.SerializeToString() for record in GIVEN]
_GIVEN_TABLES = applied(_GIVEN, {})
_TABLES = applied([record.SerializeToString() for record in RECORDS], {})


@target(*(record.SerializeToString() for record in RECORDS), slow=True)
def command_log_record(data: bytes) -> None:
    """A record of `parley.commands`: applied, refused or dead-lettered, and the next one is applied as ever."""
    with suppress(DecodeError):
        if CommandRecord.FromString(data).rules_version > RULES_VERSION:
            return  # stops the partition, loudly: a newer gateway made it
    last = command_record("bob", SendMessage(body=b"last"), number=99, to="alice")
    applied([*_GIVEN, data, data, last.SerializeToString()], _GIVEN_TABLES, len(_GIVEN))


@target(
    EventBatch(
        events=[EventRecord(conversation_id=GROUP, seq=1, user_id="alice", all_members=True, shared=b"x")]
    ).SerializeToString()
)
def event_log_record(data: bytes) -> None:
    """A record of `parley.events`, as routers read it."""
    try:
        batch = EventBatch.FromString(data)
    except DecodeError:
        return
    groups = GroupCache(2)
    groups.begin(0)
    for record in batch.events:
        group = groups.get(record.conversation_id)
        if group is None:
            groups.put(record.conversation_id, Group(ListRecipientsResponse(head_seq=1)))
        else:
            group.apply(record.seq, record.membership_changes)
            group.recipients(record.seq)


@target(*(row.value for row in _TABLES.values()))
def stored_row(data: bytes) -> None:
    """A row that is not what was written: refused where it is parsed, or read; never silently something that can't be written."""
    for parse in (rows.member_of, rows.fate_of, lambda value: rows.state_of(GROUP, [rows.Cell(rows.HEAD_KEY, value)])):
        with suppress(DecodeError):
            parse(data)


@target(encode_page_token("sync False alice", f"{AB} ff {GROUP}").encode(), encode_page_token("members " + GROUP, "bob").encode())
def page_token(data: bytes) -> None:
    """A page token, in both lists that take one."""
    reader = Reader(MemoryTimeline(rows.TABLES, _TABLES), RecentEvents(0), 1)
    token = data.decode("utf-8", "surrogateescape")
    with suppress(ServiceError):
        decode_page_token("sync False alice", token, lambda cursor: int(cursor.split(" ")[1], 16))
    text = data.decode("utf-8", "replace")
    with suppress(ServiceError):
        done(Syncer(MemoryTimeline(rows.TABLES, _TABLES), reader).sync("alice", api.SyncRequest(page_token=text)))
    with suppress(ServiceError):
        done(reader.list_members("alice", api.ListMembersRequest(conversation_id=GROUP, page_token=text)))


@target(
    b"\x01" + api.SyncRequest(digests=range(64), page_size=2, last_events_count=3).SerializeToString(),
    b"\x02" + api.ListEventsRequest(conversation_id=GROUP, after_seq=1, page_size=10).SerializeToString(),
    b"\x02" + api.ListEventsRequest(conversation_id=AB, before_seq=3).SerializeToString(),
    b"\x03" + api.GetConversationRequest(conversation_id=AB).SerializeToString(),
    b"\x00" + api.ListMembersRequest(conversation_id=GROUP, page_size=1).SerializeToString(),
)
def question(data: bytes) -> None:
    """A read: the first byte says which."""
    timeline = MemoryTimeline(rows.TABLES, _TABLES)
    reader = Reader(timeline, RecentEvents(0), 1)
    kind, rest = data[:1], data[1:]
    try:
        match ord(kind or b"\0") % 4:
            case 0:
                done(reader.list_members("alice", api.ListMembersRequest.FromString(rest)))
            case 1:
                done(Syncer(timeline, reader).sync("alice", api.SyncRequest.FromString(rest)))
            case 2:
                answer = done(reader.list_events("alice", api.ListEventsRequest.FromString(rest)))
                api.ListEventsResponse.FromString(answer)
            case _:
                done(reader.get_conversation("bob", api.GetConversationRequest.FromString(rest)))
    except (DecodeError, ServiceError):
        return


_VERIFIER = TokenVerifier(KeyRing({"": verifying_key(KEY.public_key())}), SystemClock())  # type: ignore[dict-item]


@target(
    mint_token(KEY, "alice", "d1", 1e10, 0).encode(),
    b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIiwiZXhwIjoxZTMwfQ.",
    b"eyJhbGciOiJFZERTQSIsImtpZCI6WzFdfQ.e30.AA",
)
def token(data: bytes) -> None:
    """A bearer token, from the header on."""
    with suppress(Unauthenticated):
        _VERIFIER.authenticate({"authorization": "Bearer " + data.decode("latin-1")})
    with suppress(Unauthenticated):
        _VERIFIER.verify(data.decode("utf-8", "replace"))


@target(
    b'{"sub": "alice", "exp": 1e12, "nbf": 0, "device": "d1"}',
    b'{"sub": 1, "exp": "never"}',
    b'{"sub": "a", "exp": 1e999, "nbf": -1}',
    b'{"sub": "a", "exp": 1e308}',
)
def signed_claims(data: bytes) -> None:
    """What the app's own backend signed, which may be nonsense as well."""
    try:
        payload = json.loads(data)
        bearer = jwt.encode(payload, KEY, algorithm="EdDSA")
    except (ValueError, TypeError, RecursionError):
        return
    with suppress(Unauthenticated):
        _VERIFIER.verify(bearer)


@target(
    KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik"}]}',
    b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, {"kty": "oct", "k": "AA"}]}',
    b"-----BEGIN PUBLIC KEY-----\nMCowBQYDKvVwAyEAO2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=\n"
    b"-----END PUBLIC KEY-----\n",  # of a type that nobody knows
    b'{"keys": [{"kty": "oct"}]}',
    b'{"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "use": "sig"}]}',
)
def keys_file(data: bytes) -> None:
    """A file of public keys."""
    with suppress(KeysFileError):
        parse_keys(data)


def _device() -> tuple[DeviceState, MemoryStore]:
    store = MemoryStore()
    state = DeviceState(store.load(), counting=store, rng=random.Random(1), window=10)
    store.commit(state.on_welcome("bob", "d1", T0).change)
    store.commit(state.add_command(command(SendMessage(body=b"hi"), 3, to_user_id="alice"), T0).change)
    state.outbox.take(0.0, 10, 1000)
    return state, store


def _server_batch() -> bytes:
    scene = Scene(AB)
    fields = b""
    for record in RECORDS[1:3]:
        effect = scene.apply(record)
        assert effect is not None
        fields += effect.shared + effect.own + effect.actor
    return fields


def _page() -> bytes:
    """A page that goes on where what is held ends."""
    page = api.ListEventsResponse(head_seq=4, first_available_seq=1, visible_intervals=[Interval(first_seq=1)])
    for seq in (3, 4):
        page.events.add(conversation_id=AB, seq=seq, actor_user_id="alice", message_count=seq).message.body = b"x"
    return page.SerializeToString()


@target(
    b"\x00" + _server_batch(),
    b"\x00" + field(EVENT_TAG, Scene(GROUP).apply(CREATE).event),  # type: ignore[union-attr]
    b"\x01" + Conversation(conversation_id=GROUP, kind=2, head_seq=3, version=1, member_count=2).SerializeToString(),
    b"\x02" + _page(),
)
def what_a_device_gets(data: bytes) -> None:
    """A frame, a row or a page from a server: taken, or refused as a broken protocol; what was taken can be kept."""
    state, store = _device()
    kind, rest = data[:1], data[1:]
    try:
        step = Step()
        match ord(kind or b"\0") % 3:
            case 0:
                step = state.on_batch(api.ServerBatch.FromString(rest), 1.0)
            case 1:
                step = state.on_rows([Conversation.FromString(rest)], 1.0)
            case _:
                state.on_batch(api.ServerBatch.FromString(_server_batch()), 1.0)
                step = state.on_page(AB, api.ListEventsResponse.FromString(rest), 1.0)
    except (DecodeError, ClientError):
        return
    store.commit(step.change)
    state.digests()


@target(
    b'{"history":1}\n{"device":["a","d"],"invoke":{"request":"00","conversation":"c","kind":"message","body":"00"}}\n',
    b'{"history":1}\n{"device":["a","d"],"ok":{"request":"00","conversation":"c","seq":1}}\n{"device":["a","d"],"unknown":{}}\n',
    b'{"history":1}\n{"tables":"t","event":{"conversation":"c","seq":1,"actor":["a","d"],"request":"00","kind":"message"}}\n',
    b'{"history":1}\n{"device":["a","d"],"invoke":1}\n',
    b'{"history":1}\n{"device":["a","d"],"view":{"conversation":"c","held":1,"head":1,"read":1,"unread":0}}\n',
)
def recorded_history(data: bytes) -> None:
    """A file that `parley check` is given: whatever is taken of it can be judged."""
    history = History(readings={"files": {}})
    with suppress(FormatError):
        read_lines(data.decode("utf-8", "replace").splitlines(keepends=True), history)
    judge(history)


def silence() -> None:
    """Let the code under test log nothing."""
    structlog.configure(processors=[_drop], cache_logger_on_first_use=False)


def _drop(*_: object) -> Any:
    raise structlog.DropEvent
