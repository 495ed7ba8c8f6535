"""`parley key`: the development key, for gateways that run elsewhere than in `parley up`."""

from pathlib import Path

import click

from parley_cli.connection import data_option, examples
from parley_cli.failures import SetupError
from parley_cluster.cluster import public_key_file
from services.gateway.keys import KeyFileError


@click.command(short_help="Make the development key.", epilog=examples("parley key --data data"))
@data_option
def key(data_dir: Path) -> None:
    """Make the key that `parley token` signs with, unless it is there, and print the file that holds its public half.

    That file is what gateways get as PARLEY_GATEWAY_TOKEN_KEYS_FILE. In real use your own back end signs, with a key of its own.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        click.echo(public_key_file(data_dir))
    except KeyFileError as error:
        raise SetupError(f"{error}.") from error
    except OSError as error:
        raise SetupError(f"the data folder {data_dir} can't be used: {error.strerror}.") from error
