"""Good bytes made bad: most of what comes out still parses, which garbage hardly ever does."""

from collections.abc import Callable, Sequence
from random import Random

from parley_protocol.frames import varint

_DEPTH_MAX = 5


def spoiled(seeds: Sequence[bytes], rng: Random) -> bytes:
    """Return bytes to try: a seed with a few edits, seldom nothing but garbage."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 64))
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = _inside(data, rng, 0) if rng.random() < 0.7 else rng.choice(_EDITS)(data, rng)
    return data


def _replace(data: bytes, rng: Random) -> bytes:
    at, more = rng.randint(0, len(data)), _more(rng)
    return data[:at] + more + data[at + len(more) :]


def _insert(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + _more(rng) + data[at:]


def _delete(data: bytes, rng: Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.randint(1, 8) :]


def _double(data: bytes, rng: Random) -> bytes:
    at, length = rng.randint(0, len(data)), rng.randint(1, 64)
    return data[:at] + data[at : at + length] * rng.choice((2, 2, 50)) + data[at + length :]


_EDITS: Sequence[Callable[[bytes, Random], bytes]] = (_replace, _insert, _delete, _double)


def _more(rng: Random) -> bytes:
    text = bytes(rng.choices(b"abcdefxyz0129. ", k=rng.randint(1, 4)))
    return rng.choice((rng.randbytes(rng.randint(0, 8)), text, b"\xff" * 9 + b"\x01", b"\x00", b"\x80", b"-1", b"[" * 3000))


def _inside(data: bytes, rng: Random, depth: int) -> bytes:
    """Edit the bytes of one field of an encoded message, or of a message in it, and set the lengths around it right."""
    fields = _fields(data)
    if depth == 0 and not fields and _fields(data[1:]):
        return data[:1] + _inside(data[1:], rng, 1)  # a byte that says which message it is
    if not fields or depth == _DEPTH_MAX or rng.random() < 0.2:
        return rng.choice(_EDITS)(data, rng)
    weights = [end - start + 20 for start, end, _, _ in fields]  # most lies in the large ones
    start, end, tag, wire = rng.choices(fields, weights)[0]
    value = data[start:end]
    if wire == 2:
        value = _inside(value, rng, depth + 1)
        value = varint(len(value)) + value
    else:
        value = varint(rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, rng.getrandbits(7))))
    begin = data.rfind(tag, 0, start)
    return data[:begin] + tag + value + data[end:]


def _fields(data: bytes) -> list[tuple[int, int, bytes, int]]:
    """Return (start and end of the value, tag, wire type) of the fields, none if these bytes are no message."""
    found, at = [], 0
    try:
        while at < len(data):
            begin = at
            key, at = _varint_at(data, at)
            tag, wire = data[begin:at], key & 7
            start = at
            if wire == 0:
                _, at = _varint_at(data, at)
            elif wire == 2:
                length, start = _varint_at(data, at)
                at = start + length
            else:
                return []
            if at > len(data) or not key >> 3:
                return []
            found.append((start, at, tag, wire))
    except IndexError:
        return []
    return found


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
