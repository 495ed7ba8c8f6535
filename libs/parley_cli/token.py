"""`parley token`: sign in as somebody, for scripts and other clients."""

from pathlib import Path

import click

from parley_cli.connection import data_option, examples, local_token, user_id
from parley_cli.durations import duration


@click.command(
    short_help="Print a token for a user.",
    epilog=examples(
        "parley token alice",
        "parley token alice --device phone --ttl 30d",
        'grpcurl -plaintext -H "authorization: Bearer $(parley token alice)" 127.0.0.1:7080 list',
    ),
)
@click.argument("user", type=user_id)
@click.option("--device", type=user_id, metavar="ID", help="Pin the token to this device.")
@click.option(
    "--ttl", "ttl_seconds", type=duration, default="12h", show_default=True, metavar="DURATION", help="How long it is valid."
)
@data_option
def token(user: str, device: str | None, ttl_seconds: float, data_dir: Path) -> None:
    """Print a token for USER, signed with the key in the data folder.

    Whoever has the data folder can be anybody: this is for trying things out. A real server gets the public key of your own back
    end, which signs the tokens.
    """
    click.echo(local_token(data_dir, user, device or "", ttl_seconds))
