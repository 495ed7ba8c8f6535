"""The `parley` command group. Commands are imported when they are used: `parley token` need not load a terminal library."""

import importlib

import click

COMMANDS = {  # name: (module of this package, its click command), in the order of --help
    "up": ("up", "up"),
    "chat": ("chat", "chat"),
    "send": ("send", "send"),
    "history": ("history", "history"),
    "token": ("token", "token"),
    "demo": ("demo", "demo"),
    "bench": ("bench", "bench"),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # likewise
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"parley_cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="parley")
def main() -> None:
    r"""Parley: a Messenger back end that a team runs itself.

    \b
    Try it in three terminals:
      parley up
      parley chat alice --with bob
      parley chat bob --with alice
    """


if __name__ == "__main__":
    main(prog_name="parley")
