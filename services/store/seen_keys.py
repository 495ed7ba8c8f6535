"""A Bloom filter that grows: which request keys a sender may have used, so that memory can say no without a read.

After B. Bloom, "Space/time trade-offs in hash coding with allowable errors" (1970), in layers as in Almeida et al., "Scalable
Bloom Filters" (2007). A sender's keys of two weeks as Python objects would cost ~300 bytes each; here 2, so memory stays flat.
"""

_BITS_PER_KEY = 16  # with 2 probes: 1.4% of new keys cost a needless read, and two more probes would cost more than that
_FIRST_LAYER_KEYS = 512  # 1 kB for most senders
_GROWTH = 4
_LAYERS_MAX = 4  # 43,520 keys and 87 kB a sender; beyond, the filter answers "maybe" to everything


def key_hash(key: bytes) -> int:
    """Return 64 bits that are the same in every process.

    Fibonacci hashing of the request_id at the key's end: it is random in most clients, and one that counts is spread all the same.
    Whoever chooses ids that collide makes his own commands cost a read each.
    """
    number = int.from_bytes(key[-16:])
    return (number ^ number >> 64) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF


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
        bits = len(layer) * 8
        first, second = (hashed >> 32) % bits, (hashed & 0xFFFFFFFF) % bits
        layer[first >> 3] |= 1 << (first & 7)
        layer[second >> 3] |= 1 << (second & 7)

    def maybe(self, hashed: int) -> bool:
        if self.full:
            return True
        for layer in self._layers:
            bits = len(layer) * 8
            first = (hashed >> 32) % bits
            if layer[first >> 3] & 1 << (first & 7):
                second = (hashed & 0xFFFFFFFF) % bits
                if layer[second >> 3] & 1 << (second & 7):
                    return True
        return False
