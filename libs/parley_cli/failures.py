"""How commands end when they can't do what was asked: one clear line, and an exit code that a script can use."""

import click


class CommandError(click.ClickException):
    """The command was understood and failed: the server refused it, or can't be reached."""

    exit_code = 1


class SetupError(click.ClickException):
    """The command can't begin: a setting, an address, a folder or a key is not usable."""

    exit_code = 2
