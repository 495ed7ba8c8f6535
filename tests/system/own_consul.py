"""A Consul of a test's own: stopped, started again with or without its data, paused, or with rules for access."""

import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine_fixtures import ENVIRON

from parley_engines.consul import CONSUL
from parley_engines.engine import Place
from parley_engines.native import ENGINES, NativeEngines, engines_of
from parley_engines.state import read_state

NAME = "consul"


@dataclass(frozen=True)
class OwnConsul:
    """See `open_own_consul`."""

    engines: NativeEngines
    address: str

    def stop(self) -> None:
        self.engines.down([NAME])

    def start(self) -> None:
        """Start it again, on the same address, and wait until it answers."""
        assert self.engines.up([NAME])[NAME].address == self.address

    def lose_data(self) -> None:
        """Remove what it knows; it must be stopped."""
        shutil.rmtree(self.engines.data / NAME / "data")

    def signal(self, number: signal.Signals) -> None:
        os.kill(read_state(self.engines.data)[NAME].pid, number)

    def put(self, path: str, body: object, token: str) -> Any:
        """Ask it for something with a privileged token."""
        headers = {"X-Consul-Token": token}
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(body).encode(), headers, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def open_own_consul(
    folder: Path, configuration: Mapping[str, object] | None = None, ports: Mapping[str, int] | None = None
) -> Iterator[OwnConsul]:
    """Run it until the block is left, with more of a configuration, and of ports."""

    def prepare(place: Place) -> list[str]:
        command = list(CONSUL.prepare(place))
        file = place.folder / "consul.json"
        written = json.loads(file.read_text()) | dict(configuration or {})
        written["ports"] |= dict(ports or {})
        file.write_text(json.dumps(written))
        return command

    engines = engines_of(folder, lambda _: None, ENVIRON, leashed=True)
    ENGINES[NAME] = replace(CONSUL, prepare=prepare)
    try:
        yield OwnConsul(engines, engines.up([NAME])[NAME].address)
    finally:
        engines.down([NAME])
        ENGINES[NAME] = CONSUL
