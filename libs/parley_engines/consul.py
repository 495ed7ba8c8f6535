"""HashiCorp Consul: one server, built from its Go module."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from typing import Final

from parley_engines.engine import HOST, Engine, Place
from parley_engines.provision import Recipe, Workshop
from parley_engines.tools import GO, run_tool

_MODULE: Final = "github.com/hashicorp/consul"
_PROBE_SECONDS: Final = 3.0
# The last version that builds as a dependency: later ones consist of nested modules. The HTTP API is the same in current ones.
_VERSION: Final = "1.12.9"
_FLAGS: Final = ["-trimpath", "-ldflags", "-s -w"]


def _build(workshop: Workshop) -> None:
    """Build the command. go.sum is part of the recipe, and Go refuses a module that is not what it says."""
    source = workshop.scratch / "source"
    source.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copy(workshop.recipe.folder / name, source)
    # Modules and objects of a build are 5 GB: in folders that go away, not in the user's.
    environ = {**workshop.environ, "GOMODCACHE": str(workshop.scratch / "modules"), "GOCACHE": str(workshop.scratch / "objects")}
    environ |= {"GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}

    fetched = compiled = 0

    def fetching(line: str) -> str:
        nonlocal fetched
        fetched += line.startswith("go: downloading")
        return f"consul: {fetched} modules fetched"

    run_tool(["go", "list", "-deps", _MODULE], folder=source, environ=environ, progress=fetching, tell=workshop.tell)
    listed = subprocess.run(["go", "list", "-deps", _MODULE], cwd=source, env=environ, capture_output=True, text=True, check=True)
    packages = listed.stdout.count("\n")

    def compiling(line: str) -> str:
        nonlocal compiled
        compiled += 1
        return f"consul: {compiled} of {packages} packages compiled"

    command = ["go", "build", "-v", *_FLAGS, "-o", str(workshop.result / "consul"), _MODULE]
    run_tool(command, folder=source, environ=environ, progress=compiling, tell=workshop.tell)


def _prepare(place: Place) -> Sequence[str]:
    # Given by a file, not by flags: only here can the timing of Raft be that of one machine.
    configuration = {
        "server": True,
        "bootstrap_expect": 1,
        "node_name": "parley",
        "data_dir": str(place.folder / "data"),
        "bind_addr": HOST,
        "client_addr": HOST,
        "ports": {
            "http": place.ports["client"],
            "server": place.ports["server"],
            "serf_lan": place.ports["gossip"],
            "serf_wan": -1,
            "dns": -1,
            "grpc": -1,
        },
        "performance": {"raft_multiplier": 1},
        "disable_update_check": True,
        "log_level": "WARN",
    }
    file = place.folder / "consul.json"
    file.write_text(json.dumps(configuration, indent=2))
    return [str(place.files / "consul"), "agent", "-config-file", str(file)]


def _probe(port: int) -> None:
    """Ask for the leader: there is none before the election, and none without the data folder."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/v1/status/leader", timeout=_PROBE_SECONDS) as answer:
        if not json.load(answer):
            raise ValueError("there is no leader yet")


CONSUL: Final = Engine(
    name="consul",
    title=f"Consul {_VERSION}",
    recipe=Recipe("consul", _VERSION, "90 MB that are built from source: some 4 min, and 5 GB of disk meanwhile", _build),
    run_tools=(),
    build_tools=(GO,),
    ports=("client", "server", "gossip"),
    prepare=_prepare,
    probe=_probe,
    start_seconds=60,
    stop_seconds=15,
)
