"""Engines as containers, by the project's docker-compose.yml: ScyllaDB itself, and the ports that the file publishes."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parley_engines.errors import EngineError
from parley_engines.provision import Tell

COMPOSE_FILE: Final = Path(__file__).parents[2] / "docker-compose.yml"
_ASK_SECONDS: Final = 10.0  # a Docker engine that runs answers at once


@dataclass(frozen=True)
class DockerEngines:
    """The engines of one compose project. Methods block and raise EngineError."""

    file: Path
    environ: Mapping[str, str]
    tell: Tell

    def is_usable(self) -> bool:
        """Tell whether there is a compose file, a Docker engine that runs, and Compose."""
        return self.file.is_file() and all(self._answers(question) for question in (["compose", "version"], ["info"]))

    def up(self, names: Iterable[str]) -> None:
        """Start what does not run yet; return once all of it is healthy."""
        services = list(names)
        self.tell(f"docker compose starts {', '.join(services)} (images are fetched the first time)")
        self._run(self.command("up", "--detach", "--wait", *services))

    def down(self, names: Iterable[str]) -> None:
        """Stop these; their volumes stay."""
        self._run(self.command("stop", *names))

    def status(self, names: Iterable[str]) -> dict[str, str]:
        """Return "ready", "not ready: WHY" or "stopped" for each."""
        said = self._run(self.command("ps", "--all", "--format", "json", *names), capture=True)
        # One object a line, or one array: it depends on the version of Compose.
        text = said.strip()
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        by_service = {str(row["Service"]): row for row in rows}
        return {name: _judge(by_service.get(name)) for name in names}

    def logs(self, names: Iterable[str], lines: int, *, follow: bool) -> None:
        """Show the end of what they said, and go on if asked to."""
        self._run(self.command("logs", "--tail", str(lines), *(["--follow"] if follow else []), *names))

    def command(self, *words: str) -> list[str]:
        """Return the command line."""
        return ["docker", "compose", "--file", str(self.file), *words]

    def _answers(self, question: Sequence[str]) -> bool:
        docker = shutil.which("docker", path=self.environ.get("PATH"))
        if docker is None:
            return False
        try:
            asked = subprocess.run(
                [docker, *question], capture_output=True, check=False, timeout=_ASK_SECONDS, env=dict(self.environ)
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return asked.returncode == 0

    def _run(self, command: Sequence[str], *, capture: bool = False) -> str:
        done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False, env=dict(self.environ))
        if done.returncode:
            raise EngineError(f"{' '.join(command)} failed with exit code {done.returncode}")
        return done.stdout or ""


def _judge(row: Mapping[str, str] | None) -> str:
    if row is None or row.get("State") != "running":
        return "stopped"
    health = row.get("Health") or "healthy"  # a service without a check says nothing
    return "ready" if health == "healthy" else f"not ready: {health}"
