"""A Bloom filter that grows: which request keys a sender may have used, so that memory can say no without a read.

After B. Bloom, "Space/time trade-offs in hash coding with allowable errors" (1970), in layers as in Almeida et al., "Scalable
Bloom Filters" (2007). A sender's keys of two weeks as Python objects would cost ~300 bytes each; here 1.5, so memory stays flat.
"""

from hashlib import blake2b

_BITS_PER_KEY = 12  # with 4 probes: 0.7% of new keys cost a needless read
_PROBES = 4
_FIRST_LAYER_KEYS = 512  # 768 bytes for most senders
_GROWTH = 4
_LAYERS_MAX = 4  # 43,520 keys and 64 kB a sender; beyond, the filter answers "maybe" to everything


def key_hash(key: bytes) -> int:
    """Return 64 bits that are the same in every process."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


class SeenKeys:
    """Says for sure that a key was not added, or that it may have been."""

    __slots__ = ("_layers", "_room", "full")

    def __init__(self) -> None:
        self._layers: list[bytearray] = []
        self._room = 0
        self.full = False  # answers "maybe" from now on

    def add(self, hashed: int) -> None:
        if self.full:
            return
        if self._room == 0:
            if len(self._layers) == _LAYERS_MAX:
                self.full = True
                self._layers.clear()
                return
            self._room = _FIRST_LAYER_KEYS * _GROWTH ** len(self._layers)
            self._layers.append(bytearray(self._room * _BITS_PER_KEY // 8))
        self._room -= 1
        layer = self._layers[-1]
        bits, step = len(layer) * 8, hashed >> 32 | 1
        for _ in range(_PROBES):
            bit = hashed % bits
            layer[bit >> 3] |= 1 << (bit & 7)
            hashed += step

    def maybe(self, hashed: int) -> bool:
        if self.full:
            return True
        step = hashed >> 32 | 1
        for layer in self._layers:
            bits, probe = len(layer) * 8, hashed
            for _ in range(_PROBES):
                bit = probe % bits
                if not layer[bit >> 3] & 1 << (bit & 7):
                    break
                probe += step
            else:
                return True
        return False
