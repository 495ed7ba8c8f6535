"""docs/client.md tells the truth: the worked example of digests, and the tables that clients are written from."""

from pathlib import Path

from parley.api.v1.errors_pb2 import ErrorReason
from parley.api.v1.messaging_service_pb2 import GoAwayReason
from parley_protocol.digests import BUCKET_COUNT, Held, bucket_of, digest_of, digests_of, whole_digest
from parley_protocol.ids import direct_conversation_id

TEXT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
DIRECT = Held(direct_conversation_id("alice", "bob"), 7, 7, 5, 6, 4, 0)
GROUP = Held("g_ocfrfcq4acygkk7u4wh3ke4opq", 12, 12, 12, 0, 0, 9)


def test_the_worked_example_is_what_the_code_computes():
    for held in (DIRECT, GROUP):
        assert f"`{held.conversation_id}`" in TEXT
        assert f"`{digest_of(held):016x}`" in TEXT
        assert bucket_of(held.conversation_id) == 18
    digests = digests_of([DIRECT, GROUP])
    assert f"`{digests[18]:016x}`" in TEXT
    assert "| bucket | 18 | 18 |" in TEXT
    assert [bucket for bucket in range(BUCKET_COUNT) if digests[bucket]] == [18]
    assert digests[18] == digest_of(DIRECT) ^ digest_of(GROUP)


def test_two_views_are_equal_as_a_whole_if_all_buckets_are():
    digests = digests_of([DIRECT, GROUP, Held("elsewhere", 1, 1, 1, 0, 0, 0)])
    assert whole_digest(digests) == digests[18] ^ digests[bucket_of("elsewhere")]
    assert whole_digest(digests_of([])) == 0


def test_every_goodbye_is_in_the_table():
    for name in GoAwayReason.keys()[1:]:
        assert name.removeprefix("GO_AWAY_REASON_") in TEXT


def test_no_reason_is_named_that_does_not_exist():
    published = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
    table = TEXT[TEXT.index("## Errors") : TEXT.index("## A client in another")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ") and "reason |" not in line]
    named = {word.strip() for row in rows for word in row.split(",")}
    assert named <= published, named - published
