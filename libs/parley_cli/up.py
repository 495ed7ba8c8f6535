"""`parley up`: a server on this machine."""

import os
import random
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click
from prometheus_client import CollectorRegistry, ProcessCollector

from chassis.addresses import is_loopback
from chassis.app import Stop, allow_open_files, is_pipe, prefer_throughput, run
from chassis.certificates import TlsError
from chassis.config import ConfigError, load_all_settings
from chassis.embedded import DataFolderError
from chassis.eventlog import LogSetupError, LogUnavailableError
from chassis.first_of import first_of
from chassis.logs import configure_logging
from chassis.metrics import open_metrics_server
from chassis.process_config import ProcessSettings
from chassis.readiness import open_readiness
from chassis.server import BindError
from chassis.sqlite import StorageError
from chassis.timeline import TimelineUnavailableError
from parley_cli.connection import DEFAULT_ADDRESS, data_option, examples
from parley_cli.data_dir import default_data_dir
from parley_cli.embedded import EmbeddedSettings, open_embedded
from parley_cli.failures import SetupError
from services.gateway.config import GatewaySettings
from services.gateway.keys import KeyFileError
from services.gateway.tokens import KeysFileError

# What a server that can't begin says why; once it serves, none of these comes up here.
_UNUSABLE = (
    BindError, DataFolderError, KeyFileError, KeysFileError, LogSetupError, LogUnavailableError, StorageError,
    TimelineUnavailableError, TlsError,
)  # fmt: skip

_COUNT = click.IntRange(1, 32)


@click.command(
    short_help="Run a server on this machine.",
    epilog=examples(
        "parley up",
        "parley up --listen 127.0.0.1:0 --data data",
        "parley up --metrics 127.0.0.1:9464",
        "parley up --distributed --gateways 3",
        "PARLEY_GATEWAY_TOKEN_KEYS_FILE=keys.json parley up --listen 0.0.0.0:443 --tls-certificate chain.pem --tls-key key.pem",
    ),
)
@click.option("--listen", metavar="A:P", help="Where devices connect; port 0 picks a free one.  [default: 127.0.0.1:7080]")
@data_option
@click.option("--metrics", metavar="A:P", help="Serve Prometheus metrics at http://A:P/metrics.  [default: nowhere]")
@click.option("--tls-certificate", metavar="FILE", help="The certificate with its chain (PEM); needed beyond loopback.")
@click.option("--tls-key", metavar="FILE", help="Its private key (PEM).")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [default: warning]")
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@click.option("--until-stdin-ends", is_flag=True, help="End as by Ctrl-C when stdin, a pipe, does: with whoever holds it.")
@click.option("--distributed", is_flag=True, help="A process a service, on Kafka, ScyllaDB and Consul, which are started, too.")
@click.option("--gateways", type=_COUNT, default=2, show_default=True, help="Gateway processes, with --distributed.")
@click.option("--stores", type=_COUNT, default=1, show_default=True, help="Store processes, with --distributed.")
@click.option("--routers", type=_COUNT, default=1, show_default=True, help="Router processes, with --distributed.")
@click.option(
    "--engines",
    "engines_dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="With --distributed: the engines' folder, as of `parley engines up --data DIR`.  [default: engines in the data folder]",
)
def up(
    data_dir: Path,
    log_json: bool,
    until_stdin_ends: bool,
    distributed: bool,
    gateways: int,
    stores: int,
    routers: int,
    engines_dir: Path | None,
    **flags: str | None,
) -> None:
    """Run a server on this machine: all services in this process, data in one folder.

    With --distributed every service is a process of its own, started again when it ends; engines are provisioned as by
    `parley engines up`, and stopped at the end unless they ran before.

    Says `ready` with its address once it serves. Ctrl-C (or SIGTERM) says goodbye to all devices and ends it, a second one ends
    it at once. Whatever was acknowledged is there at the next start, also after a SIGKILL or a power loss.

    Flags go before the environment: PARLEY_GATEWAY_LISTEN, PARLEY_METRICS_LISTEN, PARLEY_LOG_LEVEL and so on; every setting of
    the gateway has a variable PARLEY_GATEWAY_<NAME>.
    """
    names = {
        "listen": "PARLEY_GATEWAY_LISTEN",
        "metrics": "PARLEY_METRICS_LISTEN",
        "tls_certificate": "PARLEY_GATEWAY_TLS_CERTIFICATE_FILE",
        "tls_key": "PARLEY_GATEWAY_TLS_KEY_FILE",
        "log_level": "PARLEY_LOG_LEVEL",
    }
    environ = dict(os.environ) | {names[flag]: value for flag, value in flags.items() if value is not None}
    if until_stdin_ends and not (sys.stdin and is_pipe(sys.stdin.fileno())):  # there is none where it was closed
        raise SetupError("--until-stdin-ends needs a pipe as stdin.")
    if log_json:
        environ["PARLEY_LOG_JSON"] = "true"
    if distributed:
        from parley_cli.up_distributed import run_distributed  # what embedded servers need not load

        counts = {"gateways": gateways, "stores": stores, "routers": routers}
        run_distributed(data_dir.absolute(), engines_dir, environ, until_stdin_ends=until_stdin_ends, **counts)
        return
    settings, gateway_settings = read_settings(environ)
    configure_logging(json=settings.log_json, level=settings.log_level)
    prefer_throughput()
    allow_open_files()
    try:
        run(
            lambda stop: serve(stop, settings, EmbeddedSettings(gateway=gateway_settings), data_dir),
            until_stdin_ends=until_stdin_ends,
        )
    except _UNUSABLE as error:
        raise SetupError(f"{error}.") from error


def read_settings(environ: Mapping[str, str]) -> tuple[ProcessSettings, GatewaySettings]:
    """Read all settings. Raises SetupError that names every bad key at once."""
    try:
        settings = load_all_settings((ProcessSettings, GatewaySettings), environ)
    except ConfigError as error:
        raise SetupError(str(error)) from error
    return settings[ProcessSettings], settings[GatewaySettings]


async def serve(stop: Stop, settings: ProcessSettings, services: EmbeddedSettings, data_dir: Path) -> None:
    """Serve until told to stop, then drain. Raises what ended a service meanwhile."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # memory, CPU, open files
    async with AsyncExitStack() as stack:
        metrics_address, readiness = "", await stack.enter_async_context(open_readiness())
        if settings.metrics_listen:
            metrics = await stack.enter_async_context(open_metrics_server(settings.metrics_listen, registry, readiness))
            metrics_address = metrics.address
        running = await stack.enter_async_context(
            open_embedded(services, data_dir, metrics=registry, readiness=readiness, rng=random.Random())
        )
        others = [f"metrics on http://{metrics_address}/metrics"] if metrics_address else []
        click.echo(announcement(running.address, services.gateway, data_dir, others))
        await first_of(stop.wait(), running.services.wait_failed())
        click.echo("stopping")


def announcement(address: str, settings: GatewaySettings, data_dir: Path, others: Sequence[str]) -> str:
    """Say where the server is, and how to chat with commands that work in another terminal of this user."""
    options = [] if address == DEFAULT_ADDRESS else ["--server", address]
    if data_dir != default_data_dir({name: value for name, value in os.environ.items() if name != "PARLEY_DATA_DIR"}):
        options += ["--data", str(data_dir.absolute())]
    if settings.tls_certificate_file:
        options += ["--tls-ca", str(settings.tls_certificate_file.absolute())]
    lines = [f"parley is ready on {address}", ""]
    if settings.token_keys_file is None and is_loopback(address):
        lines.append("Chat in two more terminals:")
        for user, peer in (("alice", "bob"), ("bob", "alice")):
            lines.append("  " + shlex.join([*program(), "chat", user, "--with", peer, *options]))
        lines.append("")
    lines += [*others, f"data in {data_dir}", "Ctrl-C stops the server."]
    return "\n".join(lines)


def program() -> list[str]:
    """Return how this program is called: by its name where the shell finds it, else by its path."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return [sys.executable, "-m", "parley_cli"]
    found = shutil.which(path.name)
    if found and Path(found).samefile(path):
        return [path.name]
    return [os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)]
