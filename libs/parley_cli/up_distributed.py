"""`parley up --distributed`: engines, topics, tables, and every service a process of its own."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

import click
from pydantic_settings import BaseSettings

from chassis.app import Stop, allow_open_files, run
from chassis.certificates import TlsError
from chassis.config import ConfigError, load_all_settings, load_settings
from chassis.embedded import DataFolderError, hold_folder
from chassis.engines import ALL_ENGINES
from chassis.eventlog import LogSetupError, LogUnavailableError
from chassis.eventlog_kafka_settings import KafkaSettings
from chassis.eventlog_kafka_topics import MissingTopicError, partitions_made
from chassis.first_of import first_of
from chassis.logs import configure_logging
from chassis.process_config import InternalSettings, ProcessSettings
from chassis.server import BindError, refuse_taken
from parley_cli.certificates import CertificateFilesError, has_authority, make_authority, make_leaves
from parley_cli.failures import CommandError, SetupError
from parley_cli.up import announcement
from parley_cluster.cluster import ENGINES_FOLDER, engine_settings, open_cluster, prepare, public_key_file, running_engines
from parley_cluster.supervisor import ProcessFailedError
from parley_cluster.topology import DRAIN_ORDER, Topology, certified
from parley_engines.errors import EngineError
from parley_engines.native import engines_of
from parley_protocol.topics import COMMANDS
from services.gateway.config import GatewaySettings
from services.gateway.keys import KeyFileError
from services.router.config import RouterSettings
from services.store.config import StoreSettings

CERTIFICATES_FOLDER: Final = "certs"
_CERTIFIED_FOR: Final = timedelta(days=365)  # longer than anybody lets it run
_PATIENCE_SECONDS: Final = 15.0  # for a Kafka that runs and can't yet say what a topic was made with

SETTINGS: tuple[type[BaseSettings], ...] = (
    ProcessSettings, InternalSettings, *ALL_ENGINES, GatewaySettings, StoreSettings, RouterSettings,
)  # fmt: skip


def run_distributed(
    data_dir: Path,
    engines_dir: Path | None,
    environ: Mapping[str, str],
    *,
    gateways: int,
    stores: int,
    routers: int,
    until_stdin_ends: bool,
) -> None:
    """Run a cluster until told to stop; `environ` has the settings. Raises SetupError, CommandError."""
    environ = dict(environ)
    if environ.pop("PARLEY_METRICS_LISTEN", ""):
        raise SetupError(
            "with --distributed every process has metrics on an address of its own: see processes.json in the data folder."
        )
    try:
        settings = load_all_settings(SETTINGS, environ)
    except ConfigError as error:
        raise SetupError(str(error)) from error
    process, gateway = settings[ProcessSettings], settings[GatewaySettings]
    configure_logging(json=process.log_json, level=process.log_level)
    allow_open_files()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if gateway.token_keys_file is None:
            environ["PARLEY_GATEWAY_TOKEN_KEYS_FILE"] = str(public_key_file(data_dir))
        with hold_folder(data_dir):  # to say at once, and not after the engines' start, what stands in the way
            for listen in Topology(gateway.listen, gateways).listens:
                refuse_taken(listen)
        with running_engines(engines_of(engines_dir or data_dir / ENGINES_FOLDER, _tell, leashed=True)) as engines:
            environ |= engine_settings(engines)
            if "PARLEY_KAFKA_PARTITIONS" not in environ:
                environ["PARLEY_KAFKA_PARTITIONS"] = str(_partitions(environ, max(stores, routers)))
            prepare(environ)
            roles = {} if "PARLEY_INTERNAL_TLS_CA_FILE" in environ else _certificates(data_dir / CERTIFICATES_FOLDER)
            topology = Topology(gateway.listen, gateways, stores, routers, environ, of_role=roles)

            async def serve(stop: Stop) -> None:
                async with open_cluster(topology, data_dir, engines, lambda name, line: _pass_on(name, line, process)) as cluster:
                    titles = ", ".join(started.title for started in engines.values())
                    others = [f"engines: {titles}", f"partitions of the log: {environ['PARLEY_KAFKA_PARTITIONS']}"]
                    click.echo(announcement(cluster.address, gateway, data_dir, others))
                    await first_of(stop.wait(), cluster.supervisor.wait_failed())
                    click.echo("stopping")

            run(serve, until_stdin_ends=until_stdin_ends)
    except (BindError, CertificateFilesError, DataFolderError, KeyFileError, TlsError) as error:
        raise SetupError(f"{error}.") from error
    except ProcessFailedError as error:
        raise SetupError(str(error)) from error  # its own words come last
    except OSError as error:
        raise SetupError(f"the data folder {data_dir} can't be used: {error.strerror}.") from error
    except (EngineError, LogSetupError, LogUnavailableError) as error:
        raise CommandError(f"{error}.") from error


def _partitions(environ: Mapping[str, str], workers: int) -> int:
    """Return how many partitions the log has: what it was made with, for that can't change; a new one gets one for each worker.

    Not the 8 of a cluster on machines of its own: a store has one interpreter, and the fewer partitions, the larger its batches.
    """
    settings = load_settings(KafkaSettings, environ)
    try:
        return asyncio.run(
            partitions_made(
                settings.connection(), COMMANDS, epoch=settings.log_epoch, prefix=settings.prefix, seconds=_PATIENCE_SECONDS
            )
        )
    except MissingTopicError:
        return workers


def _certificates(folder: Path) -> dict[str, dict[str, str]]:
    """Make certificates for the services, anew at each start, and return each role's settings for them."""
    if not has_authority(folder):
        make_authority(folder)
    make_leaves(folder, _CERTIFIED_FOR, DRAIN_ORDER, replace=True)
    return certified(folder)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _pass_on(name: str, line: str, process: ProcessSettings) -> None:
    """Join the logs: for machines as they are, since each line says whose it is, for people under the process's name."""
    print(line if process.log_json else f"{name:<10}| {line}", file=sys.stderr)
