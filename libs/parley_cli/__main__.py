"""The `parley` command group. Commands are imported when they are used: `parley token` need not load a terminal library."""

import importlib
import os
from pathlib import Path

import click

from chassis.compiled import serve_compiled

# gRPC's C core reads this once, when it is loaded: what it would print on stderr comes as an error, too, in words of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Nor shall it do anything at a fork: ours are followed by exec at once, and a child that is touched in between may crash.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

COMMANDS = {  # name: (module of this package, its click command), in the order of --help
    "up": ("up", "up"),
    "serve": ("serve", "serve"),
    "chat": ("chat", "chat"),
    "send": ("send", "send"),
    "history": ("history", "history"),
    "token": ("token", "token"),
    "key": ("key", "key"),
    "certs": ("certs", "certs"),
    "demo": ("demo", "demo"),
    "bench": ("bench", "bench"),
    "simulate": ("simulate", "simulate"),
    "check": ("check", "check"),
    "chaos": ("chaos", "chaos"),
    "engines": ("engines", "engines"),
    "topics": ("topics", "topics"),
    "deadletter": ("deadletter", "deadletter"),
    "schema": ("schema", "schema"),
    "admin": ("admin", "admin"),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # click's signature
        return list(COMMANDS)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        # Only servers: simulation looks into the modules, and the others don't need them. Nor does --help, which gets all commands.
        if args[0] in ("up", "serve"):
            serve_compiled(Path(__file__).parents[2])
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # likewise
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"parley_cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="\b\nTry it in three terminals:\n  parley up\n  parley chat alice --with bob\n  parley chat bob --with alice",
)
@click.version_option(package_name="parley")
def main() -> None:
    """Parley: a Messenger back end that a team runs itself."""
    os.umask(0o077)  # messages and keys are their owner's, also in a folder that others may look into


if __name__ == "__main__":
    main(prog_name="parley")
