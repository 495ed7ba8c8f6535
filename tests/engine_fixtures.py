"""Real engines for the tests of a run: provisioned before the first test, begun after the first tiers, stopped at the end.

A test names what it needs by a mark and asks the fixture where it is:

    @pytest.mark.engines("kafka")
    async def test_...(engines: EnginesOfTheRun) -> None:
        ... engines.address("kafka")

Who asks first waits for its start. All tests of a run share the engines: isolate by a topic prefix, keyspace or key prefix of
one's own.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from parley_engines.errors import EngineError
from parley_engines.native import ENGINES, NativeEngines, engines_of
from parley_engines.processes import wait_ended
from parley_engines.provision import default_cache_dir
from parley_engines.state import Started

# Before tests get one of their own: the cache folder and the tools are the user's. Engines end long before a second compiler of
# their code pays: it took half of their CPU, 15 s of the contract tests' alone. Who measures sets this to nothing.
ENVIRON = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1", **os.environ}

KILL_SECONDS = 10.0  # the end of a killed process is the kernel's work alone


class HasPids(Protocol):
    """Engines that run."""

    def pids(self) -> set[str]:
        """Return the processes that outlive a test and are no leak."""


class EnginesOfTheRun:
    """The engines that this run of pytest has."""

    def __init__(self, engines: NativeEngines, missing: dict[str, str]) -> None:
        self._engines = engines
        self._missing = missing
        self._began = False
        self._begun: dict[str, Started] = {}  # by `begin`; nobody has asked for it yet
        self._started: dict[str, Started] = {}

    def begin(self) -> None:
        """Start all that this run needs, without waiting: they come up while tests run that need none. Again does nothing."""
        if self._began:
            return
        self._began = True
        with suppress(EngineError):  # whoever needs it meets it again, and says so
            # Kafka last: a Java of its own formats its storage first, which the others need not wait for.
            names = sorted((name for name, why in self._missing.items() if not why), key=lambda name: name == "kafka")
            self._begun = self._engines.begin(names)

    @property
    def folder(self) -> Path:
        """Where `parley engines` and `parley up --distributed` find them."""
        return self._engines.data

    @property
    def cache_home(self) -> Path:
        """What XDG_CACHE_HOME has to be for a command to find what this run has provisioned."""
        return default_cache_dir(ENVIRON).parents[1]

    def address(self, name: str) -> str:
        """Return host:port of a running engine."""
        return self.started(name).address

    def require(self, name: str) -> None:
        """Skip the test where an engine can't be had, for those that start one of their own."""
        if name not in self._missing:
            raise LookupError(f'the test asks for {name} and has no mark @pytest.mark.engines("{name}")')
        if self._missing[name]:
            pytest.skip(f"{name} can't be had here: {self._missing[name]}")

    def started(self, name: str) -> Started:
        """Return an engine that answers, started now if it does not run. Skips the test where it can't be had."""
        self.require(name)
        if name not in self._started or not self._started[name].is_running():
            # It ends with the thread that starts it, also when pytest is killed.
            assert threading.current_thread() is threading.main_thread()
            self._started |= self._engines.up([name])
        return self._started[name]

    def kill(self, name: str) -> None:
        """End an engine as a power cut would; whoever asks for it next starts it anew, with its data, on the same ports."""
        process = self.started(name).process
        os.kill(process.pid, signal.SIGKILL)
        assert wait_ended(process, KILL_SECONDS)

    def pids(self) -> set[str]:
        """Return the processes that outlive a test and are no leak."""
        return {str(started.pid) for started in [*self._begun.values(), *self._started.values()]}

    def stop(self) -> None:
        """End all of them, at once: nobody comes for what they hold, and Cassandra takes 4 s to end in order."""
        processes = [started.process for started in (self._begun | self._started).values() if started.is_running()]
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            assert wait_ended(process, KILL_SECONDS)


def provision_for(session: pytest.Session, engines: NativeEngines) -> dict[str, str]:
    """Provision what the tests of this run are marked with; return for each why it can't be had, or nothing."""
    needed = {str(name): item for item in session.items for mark in item.iter_markers("engines") for name in mark.args}
    for name in needed.keys() - ENGINES.keys():
        raise LookupError(f"{needed[name].nodeid} is marked with an engine that is none: {name}")
    missing = dict.fromkeys((name for name in ENGINES if name in needed), "")
    for name in missing:
        try:
            engines.provision([name])
        except EngineError as error:
            missing[name] = str(error)
            engines.tell(f"{name} can't be had, its tests will not run: {error}")
    return missing


runs: list[HasPids] = []
_missing: dict[str, str] = {}
_are_due = threading.Event()


def provision(session: pytest.Session) -> None:
    """Provision before the first test: a build of minutes is none's setup, and says what it does."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    tell = terminal.write_line if terminal else print
    _missing.update(provision_for(session, engines_of(Path(), tell, ENVIRON)))
    if _missing:
        tell(f"engines: {', '.join(described(name, missing=bool(why)) for name, why in _missing.items())}")


def described(name: str, *, missing: bool) -> str:
    """Return what an engine's name means in this run: which program, of which version."""
    recipe = ENGINES[name].recipe
    program = f"{recipe.name} {recipe.version}" if recipe.name == name else f"{name} is {recipe.name} {recipe.version}"
    return f"no {program}" if missing else program


def begin_engines() -> None:
    """Let engines start, also those of a run whose fixture is yet to be set up."""
    _are_due.set()
    for run in runs:
        if isinstance(run, EnginesOfTheRun):  # the others are a test's own
            run.begin()


@pytest.fixture(scope="session", autouse=True)
def begun_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginesOfTheRun]:
    """Begin them when they are due. Not under the name that tests use: some files have a fixture of that name for themselves."""
    said: list[str] = []
    run = EnginesOfTheRun(engines_of(tmp_path_factory.mktemp("engines"), said.append, ENVIRON, leashed=True), _missing)
    runs.append(run)
    if _are_due.is_set():
        run.begin()
    yield run
    run.stop()
    runs.remove(run)


@pytest.fixture(scope="session")
def engines(begun_engines: EnginesOfTheRun) -> EnginesOfTheRun:
    """Real engines, see this module."""
    return begun_engines


def engine_pids() -> set[str]:
    """Return the engines' processes: children of ours that no test has left behind."""
    return {pid for run in runs for pid in run.pids()}
