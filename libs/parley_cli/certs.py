"""`parley certs`: an authority for trying things out, and a certificate a service."""

from datetime import timedelta
from pathlib import Path

import click

from parley_cli.certificates import ROLES, CertificateFilesError, has_authority, make_authority, make_leaves, missing_roles
from parley_cli.connection import examples
from parley_cli.failures import SetupError


@click.command(
    short_help="Make certificates for the services of one's own network.",
    epilog=examples("parley certs certs", "parley certs certs --renew --days 30"),
)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--days", type=click.IntRange(1, 825), default=365, show_default=True, help="How long the services' ones are valid.")
@click.option("--renew", is_flag=True, help="Make the services' ones anew, from the authority in DIR.")
@click.option("--missing", is_flag=True, help="Make only what is not there yet.")
def certs(folder: Path, days: int, renew: bool, missing: bool) -> None:
    """Make an authority (ca.pem, ca-key.pem) and a certificate and key for each service (gateway.pem, gateway-key.pem, ...) in DIR.

    With them services trust each other and nobody else: give each its own two files and ca.pem, and keep ca-key.pem away from all
    of them. Running services take renewed ones by themselves. Nothing is overwritten, except by --renew what it renews.
    """
    if renew and missing:
        raise SetupError("--renew and --missing are two things: first the one, then the other.")
    try:
        roles = missing_roles(folder) if missing else ROLES
        if not renew and not (missing and has_authority(folder)):
            make_authority(folder)
        make_leaves(folder, timedelta(days=days), roles, replace=renew)
    except CertificateFilesError as error:
        raise SetupError(f"{error}.") from error
    if not roles:
        click.echo(f"all certificates are in {folder} already")
        return
    click.echo(f"{'renewed' if renew else 'made'} certificates in {folder} for {', '.join(roles)}, valid for {days} days")
    click.echo("each service: PARLEY_INTERNAL_TLS_CA_FILE=ca.pem PARLEY_INTERNAL_TLS_CERTIFICATE_FILE=<service>.pem")
    click.echo("              PARLEY_INTERNAL_TLS_KEY_FILE=<service>-key.pem")
