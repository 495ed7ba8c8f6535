"""What the protos promise each other and the code: mirrors, free numbers, reasons, comments, fresh generated code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from chassis import errors
from parley.api.v1 import commands_pb2, errors_pb2, events_pb2, messaging_service_pb2
from parley.gateway.v1 import frames_pb2
from parley.log.v1 import records_pb2

ROOT = Path(__file__).parent.parent

MIRRORS = {
    records_pb2.RawCommand: commands_pb2.Command,
    records_pb2.RawEvent: events_pb2.Event,
    frames_pb2.RawConnectRequest: messaging_service_pb2.ConnectRequest,
    frames_pb2.RawDeviceBatch: messaging_service_pb2.DeviceBatch,
    frames_pb2.RawSubmitRequest: messaging_service_pb2.SubmitRequest,
}
PUBLIC_NAME = {raw.DESCRIPTOR.full_name: public.DESCRIPTOR.full_name for raw, public in MIRRORS.items()}

# Kept free for what is planned: a number that is taken for something else can't be had back.
FREE = {
    "parley.api.v1.Command": [*range(11, 14), *range(20, 30)],
    "parley.api.v1.Event": [*range(11, 14), *range(20, 30)],
    "parley.api.v1.SendMessage": range(6, 10),
    "parley.api.v1.DeviceBatch": [5, 6],
    "parley.api.v1.ServerBatch": [5, 6],
}


def described(directory: Path, *, kind: str) -> list[FileDescriptorProto]:
    """Return our files' descriptors as protoc reads them now, comments included, or as they were released."""
    file = directory / "protos.binpb" if kind == "present" else ROOT / "protos" / "released.binpb"
    if kind == "present":
        subprocess.run([sys.executable, "protos/generate.py", "descriptors", str(file)], cwd=ROOT, check=True)
    return [each for each in FileDescriptorSet.FromString(file.read_bytes()).file if each.package.startswith("parley.")]


@pytest.fixture(scope="module")
def present(tmp_path_factory):
    return described(tmp_path_factory.mktemp("protos"), kind="present")


def comments_of(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {tuple(location.path): location.leading_comments.strip() for location in file.source_code_info.location}


def kind_of(field: FieldDescriptor) -> tuple[object, ...]:
    """Return what the wire and a reader see of a field, a mirror's name taken for what it mirrors."""
    named = field.message_type or field.enum_type
    name = PUBLIC_NAME.get(named.full_name, named.full_name) if named else ""
    return field.name, field.type, field.is_repeated, name, oneof_of(field)


def oneof_of(field: FieldDescriptor) -> str:
    return field.containing_oneof.name if field.containing_oneof else ""


def left_encoded(raw: FieldDescriptor, public: FieldDescriptor) -> bool:
    """Tell whether raw holds as bytes the message that public decodes."""
    same = (raw.name, raw.is_repeated, oneof_of(raw)) == (public.name, public.is_repeated, oneof_of(public))
    return same and raw.type == FieldDescriptor.TYPE_BYTES and public.type == FieldDescriptor.TYPE_MESSAGE


@pytest.mark.parametrize("raw", MIRRORS, ids=lambda raw: raw.DESCRIPTOR.name)
def test_a_raw_message_mirrors_the_public_one(raw):
    """Every field has the same number, name, label, oneof and type, or stays encoded as bytes."""
    ours, theirs = raw.DESCRIPTOR, MIRRORS[raw].DESCRIPTOR
    assert set(ours.fields_by_number) == set(theirs.fields_by_number)
    for number, field in ours.fields_by_number.items():
        public = theirs.fields_by_number[number]
        assert kind_of(field) == kind_of(public) or left_encoded(field, public), f"{ours.name}.{field.name} = {number}"


@pytest.mark.parametrize(
    ("content", "action"), [(events_pb2.Event, commands_pb2.Command), (records_pb2.RawEvent, records_pb2.RawCommand)]
)
def test_an_events_content_is_numbered_like_the_action_that_causes_it(content, action):
    def numbers(message: type, oneof: str) -> list[int]:
        return [field.number for field in message.DESCRIPTOR.oneofs_by_name[oneof].fields]

    assert numbers(content, "content") == numbers(action, "action")


@pytest.mark.parametrize("name", FREE)
def test_numbers_kept_for_later_are_free(name):
    descriptors = {public.DESCRIPTOR.full_name: [public.DESCRIPTOR, raw.DESCRIPTOR] for raw, public in MIRRORS.items()}
    package = messaging_service_pb2.DESCRIPTOR.pool
    both: list[Descriptor] = descriptors.get(name, [package.FindMessageTypeByName(name)])
    for descriptor in both:
        assert not set(descriptor.fields_by_number) & set(FREE[name]), descriptor.full_name


def test_away_can_still_become_a_presence_state():
    assert 2 not in messaging_service_pb2.PresenceState.values()


def published_codes(files: list[FileDescriptorProto]) -> dict[str, str]:
    """Return the status code that errors.proto names for each reason: in its own comment, or that of the value before."""
    (file,) = (file for file in files if file.name.endswith("api/v1/errors.proto"))
    comments, names, codes, code = comments_of(file), {each.name for each in grpc.StatusCode}, {}, ""
    for index, value in enumerate(file.enum_type[0].value):
        said = [word for word in re.findall(r"[A-Z_]{4,}", comments.get((5, 0, 2, index), "")) if word in names]
        code = said[-1] if said else code
        codes[value.name.removeprefix("ERROR_REASON_")] = code
    return codes


def refusals() -> Iterator[tuple[str, str, str]]:
    """Yield (reason, code, where) of every error that the code raises or builds with a literal reason."""
    classes = {cls.__name__: cls.code.name for cls in errors.ServiceError.__subclasses__()}
    paths = [*(ROOT / "services").rglob("*.py"), *(ROOT / "libs" / "chassis").rglob("*.py")]
    for path in sorted(paths):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            match node.args:
                case [ast.Constant(str(reason)), *_] if name in classes:
                    yield reason, classes[name], where
                case [ast.Attribute(attr=code), ast.Constant(str(reason)), *_] if name == "build_status":
                    yield reason, code, where


def test_every_reason_is_published_with_the_code_that_it_comes_with(present):
    """A client decides by code and reason: both stand in errors.proto, and the code keeps to it."""
    codes = published_codes(present)
    assert set(codes) == {name.removeprefix("ERROR_REASON_") for name, _ in errors_pb2.ErrorReason.items()}
    found = list(refusals())
    assert found
    assert [f"{where}: {reason} with {code}" for reason, code, where in found if codes.get(reason) != code] == []
    literals = {
        node.value
        for folder in ("services", "libs/chassis")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant)
    }
    assert set(codes) - {"UNSPECIFIED"} <= literals, "a reason that nothing gives is not published"


def test_every_message_says_what_it_is(present):
    """Requests and responses apart, which their RPC explains; buf asks the same of services, RPCs and enums."""
    silent = [
        f"{file.package}.{message.name}"
        for file in present
        for index, message in enumerate(file.message_type)
        if not message.name.endswith(("Request", "Response")) and not comments_of(file).get((4, index))
    ]
    assert silent == []


def test_what_was_released_can_still_be_told(tmp_path):
    """The descriptors that `make lint` compares with hold all of our packages."""
    packages = {f"parley.{name}.v1" for name in ("api", "gateway", "log", "router", "store")}
    assert {file.package for file in described(tmp_path, kind="released")} >= packages


def test_generated_code_is_what_the_protos_generate():
    outcome = subprocess.run([sys.executable, "protos/generate.py", "check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
