"""Digests for Sync: 64 numbers that tell two views of a user's conversations apart.

A device computes them from what it holds, the store from its rows; a bucket that differs is sent. XOR over a cryptographic hash a
conversation is order-free and can be kept up to date by XOR-ing the old hash out and the new one in (the idea of set
reconciliation by hashed buckets, as in Merkle anti-entropy of Dynamo-like stores).
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

BUCKET_COUNT = 64


class Held(NamedTuple):
    """What one side holds of a conversation. Unknown or inapplicable numbers are 0."""

    conversation_id: str
    seq: int  # the last contiguous seq held; the store: the last that the user may see
    delivered_seq: int
    read_seq: int
    peer_delivered_seq: int  # 1-1 only
    peer_read_seq: int  # 1-1 only
    version: int


@lru_cache(maxsize=16_384)  # a user's conversations come again at every Sync; ~200 bytes an entry
def bucket_of(conversation_id: str) -> int:
    """Return the bucket, 0 to 63, of a conversation."""
    return hashlib.sha256(conversation_id.encode()).digest()[0] % BUCKET_COUNT


def digest_of(held: Held) -> int:
    """Return one conversation's 64-bit digest.

    That is the first 8 bytes, big-endian, of SHA-256 over the id and six 8-byte big-endian numbers.
    """
    numbers = b"".join(number.to_bytes(8) for number in held[1:])
    return int.from_bytes(hashlib.sha256(held.conversation_id.encode() + numbers).digest()[:8])


def whole_digest(digests: Iterable[int]) -> int:
    """Return all buckets in one number, to compare two views by."""
    whole = 0
    for digest in digests:
        whole ^= digest
    return whole


def digests_of(conversations: Iterable[Held]) -> list[int]:
    """Return the 64 digests of a set of conversations."""
    buckets = [0] * BUCKET_COUNT
    for held in conversations:
        buckets[bucket_of(held.conversation_id)] ^= digest_of(held)
    return buckets
