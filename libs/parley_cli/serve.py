"""`parley serve`: one service in this process, as containers run it."""

import importlib

import click

from parley_cli.connection import examples


@click.command(
    short_help="Run one service of a cluster.",
    epilog=examples(
        "PARLEY_KAFKA_SERVERS=kafka:9092 PARLEY_CQL_HOSTS=scylladb:9042 PARLEY_CONSUL_ADDRESS=127.0.0.1:8500 parley serve store",
        "PARLEY_GATEWAY_TOKEN_KEYS_FILE=keys.json parley serve gateway",
    ),
)
@click.argument("service", type=click.Choice(["gateway", "store", "router"]))
def serve(service: str) -> None:
    """Run one service of a cluster in this process, on Kafka, ScyllaDB and Consul.

    All settings come from the environment; docs/operations.md lists them. Topics and tables are there already
    (`parley topics apply`, `parley schema apply`). Engines that are not there are waited for. Says `ready` with its address;
    SIGTERM drains it. Exit codes: 0 told to end, 1 broke, 2 can't begin as configured, 75 an engine was not there in time.
    """
    importlib.import_module(f"services.{service}.__main__").main()
