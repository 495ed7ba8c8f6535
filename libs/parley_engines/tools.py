"""The programs that native engines need: found, judged by version, and run with their progress shown."""

import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parley_engines.errors import EngineError
from parley_engines.leash import on_leash

_KEPT_LINES: Final = 15  # of a program's output, for the message when it fails
_TELL_SECONDS: Final = 2.0  # between two lines of progress


@dataclass(frozen=True)
class Tool:
    """A program, and the versions that will do."""

    program: str
    name: str
    ask: tuple[str, ...]  # how to ask for its version
    answer: str  # finds it in what it says
    at_least: int
    below: int
    install: str  # what to install, where it is missing

    def find(self, environ: Mapping[str, str]) -> str | None:
        """Return its path. JAVA_HOME goes before PATH, as everywhere."""
        home = environ.get("JAVA_HOME") if self.program == "java" else None
        return shutil.which(self.program, path=f"{home}/bin") if home else shutil.which(self.program, path=environ.get("PATH"))

    def problem(self, environ: Mapping[str, str]) -> str | None:
        """Say what is wrong with it, and what to install; None: it will do."""
        path = self.find(environ)
        if path is None:
            return f"{self.name} is not there: install {self.install}"
        said = subprocess.run([path, *self.ask], capture_output=True, text=True, check=False, env=dict(environ))
        found = re.search(self.answer, said.stdout + said.stderr)
        if found is None:
            return f"{path} does not tell its version: install {self.install}"
        if not self.at_least <= int(found[1]) < self.below:
            return f"{path} is of version {found[0]}: install {self.install}"
        return None


JAVA: Final = Tool("java", "Java", ("-version",), r'version "(\d+)', 17, 18, "Java 17, e.g. openjdk-17-jre-headless")
MAVEN: Final = Tool("mvn", "Maven", ("-version",), r"Apache Maven (\d+)", 3, 5, "Maven 3, e.g. the package maven")
GO: Final = Tool("go", "Go", ("version",), r"go1\.(\d+)", 21, 1000, "Go 1.21 or newer")


def check_tools(tools: Iterable[Tool], environ: Mapping[str, str]) -> None:
    """Raise EngineError that names everything that is missing, at once."""
    problems = [problem for tool in dict.fromkeys(tools) if (problem := tool.problem(environ))]
    if problems:
        raise EngineError("engines need Docker with Compose, or some tools:\n" + "\n".join(f"  {problem}" for problem in problems))


def run_tool(
    command: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    progress: Callable[[str], str | None],
    tell: Callable[[str], None],
) -> None:
    """Run a program to its end, telling now and then what `progress` makes of its last line. Raises EngineError if it fails.

    It ends with us, however we end: an interrupted build leaves nobody writing into folders that the next one deletes.
    """
    leash = on_leash(command, folder)
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    told = time.monotonic()
    with subprocess.Popen(
        leash,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=dict(environ),
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                kept.append(line.rstrip())
                said = progress(line.rstrip())
                if said and time.monotonic() - told >= _TELL_SECONDS:
                    tell(said)
                    told = time.monotonic()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        words = "".join(f"\n  {line}" for line in kept)
        raise EngineError(f"{' '.join(command[:3])} ... failed with exit code {process.returncode}:{words}")
