"""Where the server is and who one is: the options that every client command shares."""

import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import jwt

from parley_cli.data_dir import default_data_dir
from parley_cli.failures import CommandError, SetupError
from parley_protocol.ids import is_app_id
from services.gateway.keys import KEY_FILE_NAME, KeyFileError, load_or_create_key, mint_token

DEFAULT_ADDRESS = "127.0.0.1:7080"  # where `parley up` listens unless told otherwise
# What a person at a terminal uses; a second terminal of the same user names another.
DEFAULT_DEVICE = "cli"
_TOKEN_SECONDS = 3600.0  # a token that a command makes for itself; it makes another when it connects again

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Connection:
    """How to reach a server, and how to get a token for it."""

    server: str
    data_dir: Path
    token: str | None
    tls: bool
    tls_ca: Path | None

    def token_for(self, user: str, device: str) -> str:
        """Return the token that was passed, else one made now with the key in the data folder. Raises SetupError.

        One that was passed and is another user's raises CommandError: what is sent would be sent in that one's name.
        """
        if not self.token:
            return local_token(self.data_dir, user, device)
        owner = _user_of(self.token)
        if owner not in (None, user):
            raise CommandError(f"the token is {owner}'s, not {user}'s")
        return self.token

    def trust(self) -> bool | bytes:
        """Return whom to trust, as `parley_client` takes it: False is plaintext, True the system's roots. Raises SetupError."""
        if self.tls_ca is None:
            return self.tls
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.tls_ca)  # gRPC would only fail to connect
            return self.tls_ca.read_bytes()
        except ssl.SSLError as error:
            raise SetupError(f"{self.tls_ca} holds no certificate in PEM.") from error
        except OSError as error:
            raise SetupError(f"can't read {self.tls_ca}: {error.strerror}.") from error

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Connection":
        """Take the shared options out of a command's parameters."""
        return cls(
            server=options.pop("server"),
            data_dir=options.pop("data_dir"),
            token=options.pop("token"),
            tls=options.pop("tls"),
            tls_ca=options.pop("tls_ca"),
        )


def data_option(command: _Command) -> _Command:
    """Add --data."""
    return click.option(
        "--data",
        "data_dir",
        type=click.Path(path_type=Path),
        default=lambda: default_data_dir(os.environ),
        show_default="$PARLEY_DATA_DIR, else parley in the user's data folder",
        metavar="DIR",
        help="The data folder of `parley up`, where the key lies.",
    )(command)


def connection_options(command: _Command) -> _Command:
    """Add --server, --data, --token, --tls and --tls-ca."""
    for option in (
        click.option(
            "--tls-ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Speak TLS and trust this CA certificate (PEM).",
        ),
        click.option("--tls", is_flag=True, help="Speak TLS and trust the system's CA certificates."),
        click.option(
            "--token",
            envvar="PARLEY_TOKEN",
            show_envvar=True,
            metavar="JWT",
            help="The token to show; without it one is made with the key in the data folder.",
        ),
        data_option,
        click.option(
            "--server",
            envvar="PARLEY_SERVER",
            show_envvar=True,
            default=DEFAULT_ADDRESS,
            show_default=True,
            metavar="A:P",
            help="The server's address; of a cluster several, separated by commas.",
        ),
    ):
        command = option(command)
    return command


def device_option(command: _Command) -> _Command:
    """Add --device."""
    return click.option(
        "--device", default=DEFAULT_DEVICE, show_default=True, metavar="ID", type=user_id, help="The device to be."
    )(command)


def examples(*commands: str) -> str:
    """Return a command's epilog: examples, each on its own line."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def user_id(text: str) -> str:
    """Check a user or device id, as a click type."""
    if not is_app_id(text):
        raise click.BadParameter(f"{text!r} can't be an id: 1 to 128 printable ASCII characters without spaces")
    return text


def _user_of(token: str) -> str | None:
    """Return whose a token says it is, unproved (that is the server's to judge); None if it does not say."""
    try:
        subject = jwt.decode(token, options={"verify_signature": False}).get("sub")
    except jwt.InvalidTokenError:
        return None
    return subject if isinstance(subject, str) else None


def local_token(data_dir: Path, user: str, device: str, ttl_seconds: float = _TOKEN_SECONDS) -> str:
    """Sign a token with the key in the data folder. Raises SetupError where there is none, or none that may be used."""
    path = data_dir / KEY_FILE_NAME
    try:
        if not path.exists():  # a key made here would be one that no server trusts
            raise SetupError(
                f"no key in {data_dir}: run `parley up` first, name its folder (--data), or pass a token (--token, PARLEY_TOKEN)."
            )
        key = load_or_create_key(path)
    except KeyFileError as error:
        raise SetupError(f"{error}.") from error
    except OSError as error:
        raise SetupError(f"can't read the key in {data_dir}: {error.strerror}. Pass a token (--token or PARLEY_TOKEN).") from error
    return mint_token(key, user, device, ttl_seconds, time.time())
