"""Engines as processes of this machine."""

import os
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parley_engines import processes
from parley_engines.cassandra import CASSANDRA
from parley_engines.consul import CONSUL
from parley_engines.engine import HOST, Engine, Place
from parley_engines.errors import EngineError
from parley_engines.kafka import KAFKA
from parley_engines.ports import free_ports, is_free
from parley_engines.provision import Tell, default_cache_dir, provision, provisioned
from parley_engines.state import Started, locked, read_state, write_state
from parley_engines.tools import check_tools

ENGINES: Final = {engine.name: engine for engine in (KAFKA, CASSANDRA, CONSUL)}
_PROBE_INTERVAL_SECONDS: Final = 0.2  # an engine tells nobody that it is ready: one has to ask
_KEPT_LINES: Final = 20  # of an engine's log, for the message when it fails


@dataclass(frozen=True)
class NativeEngines:
    """The engines of one data folder. Methods block, tell of their progress, and raise EngineError."""

    data: Path
    environ: Mapping[str, str]
    tell: Tell
    leashed: bool = False  # they end when the thread that calls `up` ends, however it ends

    def provision(self, names: Sequence[str]) -> None:
        """Fetch and build what was not yet. Says all that is missing for it at once, before it begins."""
        engines = [ENGINES[name] for name in names]
        cache = default_cache_dir(self.environ)
        missing = [engine for engine in engines if provisioned(engine.recipe, cache) is None]
        tools = [tool for engine in engines for tool in engine.run_tools]
        check_tools(tools + [tool for engine in missing for tool in engine.build_tools], self.environ)
        for engine in missing:
            provision(engine.recipe, cache, self.environ, self.tell)

    def begin(self, names: Sequence[str]) -> dict[str, Started]:
        """Start what is provisioned and does not run yet, without waiting until it answers: `up` does, whenever it is needed."""
        cache = default_cache_dir(self.environ)
        with locked(self.data):
            before = read_state(self.data)
            for name in names:
                if name not in before or not before[name].is_running():
                    self._start(ENGINES[name], cache)
            state = read_state(self.data)
        return {name: state[name] for name in names}

    def up(self, names: Sequence[str]) -> dict[str, Started]:
        """Provision and start what does not run yet, and return once all of it answers. What fails to start is stopped again."""
        engines = [ENGINES[name] for name in names]
        self.provision(names)
        cache = default_cache_dir(self.environ)
        with locked(self.data):
            before = {name: started for name, started in read_state(self.data).items() if started.is_running()}
            try:
                for engine in engines:
                    if engine.name not in before:
                        self._start(engine, cache)
                with ThreadPoolExecutor(len(engines), "engine-probe") as pool:
                    list(pool.map(self._wait_ready, engines))
            except BaseException:
                self._stop([engine for engine in engines if engine.name not in before])
                raise
            state = read_state(self.data)
        return {engine.name: state[engine.name] for engine in engines}

    def down(self, names: Iterable[str]) -> None:
        """Stop what runs of these; data and logs stay."""
        with locked(self.data):
            self._stop([ENGINES[name] for name in names])

    def status(self, names: Iterable[str]) -> dict[str, tuple[Started | None, str]]:
        """Return for each what was started, if anything, and "ready", "not ready: WHY" or "stopped"."""
        state = read_state(self.data)
        found: dict[str, tuple[Started | None, str]] = {}
        for name in names:
            started = state.get(name)
            if started is None or not started.is_running():
                found[name] = (started, "stopped")
            else:
                problem = _problem(ENGINES[name], started)
                found[name] = (started, f"not ready: {problem}" if problem else "ready")
        return found

    def _start(self, engine: Engine, cache: Path) -> None:
        state = read_state(self.data)
        ports = self._ports(engine, state.get(engine.name))
        folder = self.data / engine.name
        (folder / "data").mkdir(parents=True, exist_ok=True)
        files = provisioned(engine.recipe, cache)
        assert files is not None
        programs = {tool.program: tool.find(self.environ) or tool.program for tool in engine.run_tools}
        command = engine.prepare(Place(files, folder, ports, programs, self.environ))
        log = folder / "log.txt"
        log.unlink(missing_ok=True)  # what it said in earlier lives is of no use in this one's messages
        slack = engine.timer_slack_seconds
        process = processes.start(command, folder, self.environ, log, leashed=self.leashed, timer_slack_seconds=slack)
        state[engine.name] = Started(
            engine.name, engine.title, process.pid, process.started, ports, f"{HOST}:{ports[engine.ports[0]]}", str(log)
        )
        write_state(self.data, state)
        self.tell(f"{engine.name}: starting {engine.title}, process {process.pid}")

    def _ports(self, engine: Engine, before: Started | None) -> dict[str, int]:
        """Take the ports that it had, so that whoever uses it finds it again, unless somebody else has them now."""
        had = {} if before is None else dict(before.ports)
        if set(had) == set(engine.ports) and all(is_free(HOST, port) for port in had.values()):
            return had
        return free_ports(HOST, engine.ports, random.Random())

    def _wait_ready(self, engine: Engine) -> None:
        began = time.monotonic()
        started = read_state(self.data)[engine.name]
        while (problem := _problem(engine, started)) is not None:
            seconds = time.monotonic() - began
            if not started.is_running():
                raise EngineError(f"{engine.name} ended while it started{_last_words(started)}")
            if seconds > engine.start_seconds:
                raise EngineError(f"{engine.name} is not ready after {seconds:.0f} s: {problem}{_last_words(started)}")
            time.sleep(_PROBE_INTERVAL_SECONDS)
        self.tell(f"{engine.name}: ready on {started.address} after {time.monotonic() - began:.1f} s")

    def _stop(self, engines: Sequence[Engine]) -> None:
        state = read_state(self.data)
        running = [engine for engine in engines if engine.name in state and state[engine.name].is_running()]

        def stop(engine: Engine) -> None:
            processes.stop(state[engine.name].process, engine.stop_seconds)
            self.tell(f"{engine.name}: stopped")

        if running:
            with ThreadPoolExecutor(len(running), "engine-stop") as pool:
                list(pool.map(stop, running))


def _problem(engine: Engine, started: Started) -> str | None:
    """Ask it something; return why there is no good answer."""
    try:
        engine.probe(int(started.ports[engine.ports[0]]))
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


def _last_words(started: Started) -> str:
    try:
        lines = Path(started.log).read_text(errors="replace").splitlines()[-_KEPT_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines)


def engines_of(data: Path, tell: Tell, environ: Mapping[str, str] | None = None, *, leashed: bool = False) -> NativeEngines:
    """Return the engines of a data folder, with this process's environment unless told otherwise."""
    return NativeEngines(data.absolute(), dict(os.environ) if environ is None else environ, tell, leashed)
