"""What a benchmark runs against: a server of its own in a folder of its own, or the one that was named."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chassis.app import allow_open_files
from parley_cli.bench_meter import ProcessMeter
from parley_cli.bench_report import progress
from parley_cli.data_dir import data_dir_of_server
from parley_cli.failures import SetupError
from parley_cli.server_process import open_server_process, pid_of_server, run_until_signal
from parley_cluster.state_file import read_state
from services.gateway.keys import KEY_FILE_NAME, KeyFileError, load_or_create_key, mint_token

_TOKEN_SECONDS = 24 * 3600.0  # longer than any benchmark
# A benchmark's few devices send what thousands would: the limit of one is not what it measures.
_UNLIMITED = "1000000"
_OWN_SERVER_ENVIRON = {
    f"PARLEY_GATEWAY_{name}": _UNLIMITED
    for name in ("COMMANDS_PER_SECOND", "COMMANDS_BURST", "STREAMS_PER_SECOND", "STREAMS_BURST", "MAX_STREAMS")
}


@dataclass(frozen=True)
class Target:
    """A server to measure."""

    address: str
    data_dir: Path  # the server's: its key lies there
    token_for: Callable[[str], str]
    meter: ProcessMeter | None  # None: its process is not on this machine
    run_id: str  # part of all user ids, so that runs against one server do not meet
    rng: random.Random

    def user(self, role: str, index: int) -> str:
        return f"bench-{self.run_id}-{role}{index}"


@dataclass(frozen=True)
class TargetOptions:
    """Which server; `server` empty: one of its own, in `data_dir` if given, else in a folder that is removed afterwards."""

    server: str
    data_dir: Path | None
    environ: Mapping[str, str]


@asynccontextmanager
async def open_target(options: TargetOptions) -> AsyncIterator[Target]:
    """Yield the server to measure, and take it away again if it is our own."""
    allow_open_files()
    if options.server:
        theirs = data_dir_of_server(options.data_dir, os.environ)
        _let_the_server_go_first()
        yield target_of(options.server, theirs, _meter_of(theirs))
        return
    scratch = None if options.data_dir is not None else Path(tempfile.mkdtemp(prefix="parley-bench-"))
    data_dir = options.data_dir or scratch
    assert data_dir is not None
    try:
        async with open_server_process(data_dir, environ=_OWN_SERVER_ENVIRON | dict(options.environ)) as (server, address):
            _let_the_server_go_first()
            yield target_of(address, data_dir, ProcessMeter(server.pid))
    finally:
        if scratch is not None:
            shutil.rmtree(scratch)


def _meter_of(data_dir: Path) -> ProcessMeter | None:
    """Return what reads the processes of a running server's data folder: one, or those of a cluster with their supervisor."""
    pid = pid_of_server(data_dir)
    if pid is None:
        return None
    parts = {process.name: process.pid for process in read_state(data_dir)}
    return ProcessMeter(pid, parts and {**parts, "supervisor": pid})


def target_of(address: str, data_dir: Path, meter: ProcessMeter | None) -> Target:
    """Return a running server as a target. Raises SetupError."""
    path = data_dir / KEY_FILE_NAME
    if not path.exists():
        raise SetupError(f"no key in {data_dir}: is it the data folder of the server?")
    try:
        key = load_or_create_key(path)
    except (KeyFileError, OSError) as error:
        raise SetupError(f"can't use the key in {data_dir}: {error}") from error
    run_id = os.urandom(4).hex()
    return Target(
        address, data_dir, lambda user: mint_token(key, user, "", _TOKEN_SECONDS, time.time()), meter, run_id, random.Random(run_id)
    )


def _let_the_server_go_first() -> None:
    """Be a batch process, which does not break into another's time slice, until this process ends.

    Nobody but root could take that back, and to a real-time priority not even root without more words.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    except OSError as error:  # a sandbox that lets nobody choose
        progress(f"the load generator keeps its scheduling, and may hold the server up ({error.strerror})")


def run_benchmark(measure: Callable[[Target], Awaitable[dict[str, Any]]], options: TargetOptions) -> dict[str, Any]:
    """Run a benchmark; however it ends, an own server and its folder are gone afterwards."""

    async def main() -> dict[str, Any]:
        async with open_target(options) as target:
            return await measure(target)

    return run_until_signal(main())
