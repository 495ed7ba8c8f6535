"""Free ports for programs that can't be told to take any."""

import random
import socket
from collections.abc import Sequence
from typing import Final

from parley_engines.errors import EngineError

# Below the ports that systems give to outgoing connections (from 32768 on Linux, 49152 elsewhere): between our look and the
# engine's bind none of those can take ours.
_RANGE: Final = range(20_000, 32_000)
_TRIES: Final = 200


def is_free(host: str, port: int) -> bool:
    """Tell whether somebody could listen there now."""
    with socket.socket() as listener:
        # As the engines do: what the last listener's connections left in TIME_WAIT does not matter.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
        return True


def free_ports(host: str, names: Sequence[str], rng: random.Random) -> dict[str, int]:
    """Find a free port for each name. Raises EngineError."""
    found: list[int] = []
    for _ in range(_TRIES):
        port = rng.choice(_RANGE)
        if port not in found and is_free(host, port):
            found.append(port)
        if len(found) == len(names):
            return dict(zip(names, found, strict=True))
    raise EngineError(f"found no free ports on {host} between {_RANGE.start} and {_RANGE.stop}")
