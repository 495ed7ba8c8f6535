"""What the launcher knows about an engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parley_engines.provision import Recipe, Workshop, check_sums
from parley_engines.tools import Tool, run_tool

HOST: Final = "127.0.0.1"  # no engine of ours is reachable from elsewhere: none asks who comes


@dataclass(frozen=True)
class Place:
    """Where one engine runs."""

    files: Path  # what was provisioned
    folder: Path  # its configuration and data
    ports: Mapping[str, int]
    programs: Mapping[str, str]  # tools by name, with their paths
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Engine:
    """One engine, run natively."""

    name: str  # what users, docker-compose.yml and this package's callers call it
    title: str  # which program it is, honestly
    recipe: Recipe
    run_tools: Sequence[Tool]
    build_tools: Sequence[Tool]
    ports: Sequence[str]  # the first one is what clients connect to
    prepare: Callable[[Place], Sequence[str]]  # writes what it needs into the folder and returns the command
    probe: Callable[[int], None]  # asks a real question at the first port; raises OSError or ValueError while there is no answer
    start_seconds: float  # far beyond what it takes on a busy machine
    stop_seconds: float
    timer_slack_seconds: float = 0.0  # how late its timers may be; 0: as the system has it


def build_with_maven(workshop: Workshop) -> None:
    """Copy what the recipe's pom.xml names, and all that needs, into the result. Maven's repository is private and goes away."""
    count = 0

    def progress(line: str) -> str | None:
        nonlocal count
        count += line.startswith("Downloaded from") and line.partition(" (")[0].endswith(".jar")
        return f"{workshop.recipe.name}: {count} files fetched"

    # -C: a wrong checksum is an error. No -q: its lines are our progress.
    command = [
        "mvn",
        "-B",
        "-C",
        "-f",
        str(workshop.recipe.folder / "pom.xml"),
        f"-Dmaven.repo.local={workshop.scratch / 'repository'}",
    ]
    command += ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={workshop.result}"]
    command += [f"-Dproject.build.directory={workshop.scratch / 'target'}"]
    run_tool(command, folder=workshop.scratch, environ=workshop.environ, progress=progress, tell=workshop.tell)
    check_sums(workshop.recipe, workshop.result)
