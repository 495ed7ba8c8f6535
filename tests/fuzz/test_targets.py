"""Every entry that takes bytes gets a second of bad ones: the same in every run, so that what is found is found again."""

from collections.abc import Iterator
from random import Random

import pytest
import structlog

from parley_client.timelines import Timelines
from services.gateway import commands, tokens
from services.gateway.tokens import TokenVerifier
from services.store import decide
from services.store.sync import Syncer
from tests.fuzz import targets as module
from tests.fuzz.edits import spoiled
from tests.fuzz.targets import silence, targets
from tests.mutation import replace

TRIES = 3000  # a second or so a target; `make fuzz` has more time, and is guided by what the code does


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    silence()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("name", targets)
def test_good_input_is_taken(name):
    for seed in targets[name].seeds:
        targets[name].run(seed)


@pytest.mark.parametrize("name", targets)
def test_no_bytes_do_any_harm(name):
    fuzz(name)


def fuzz(name: str) -> None:
    target = targets[name]
    for number in range(TRIES // 4 if target.slow else TRIES):
        data = spoiled(target.seeds, Random(number))
        try:
            target.run(data)
        except BaseException as error:
            error.add_note(f"try {number} of {name}: {data!r}")
            raise


@pytest.mark.parametrize(
    ("name", "owner", "function", "old", "new"),
    [
        ("device_frame", commands, "_check_change_role", "action.role not in _ROLES", "False"),
        ("command_log_record", decide, "_decide_command", "except DecodeError", "except ZeroDivisionError"),
        ("page_token", module, "decode_page_token", "(Base64Error, UnicodeError, ValueError)", "OSError"),
        ("question", Syncer, "sync", "len(digests) not in (0, BUCKET_COUNT)", "False"),
        ("token", TokenVerifier, "_decode", "(jwt.PyJWTError, RecursionError)", "RecursionError"),
        ("keys_file", module, "parse_keys", "UnsupportedAlgorithm, ", ""),
        ("signed_claims", tokens, "_milliseconds", "math.isfinite(seconds * 1000)", "math.isfinite(seconds)"),
        ("what_a_device_gets", Timelines, "take_page", "raise ProtocolError(", "raise ZeroDivisionError("),
        ("recorded_history", module, "read_lines", "AttributeError, ", ""),
    ],
)
def test_a_planted_hole_is_found(name, owner, function, old, new, monkeypatch):
    replace(monkeypatch, owner, function, old, new)
    if function.startswith("_check_"):
        monkeypatch.setitem(commands._CHECKS, function.removeprefix("_check_"), getattr(commands, function))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, it is not what the entry documents
        fuzz(name)
