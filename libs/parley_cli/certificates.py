"""An authority of one's own and the certificates that it signs: for development, and for networks that have no authority yet."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis.certificates import ROLE_DOMAIN

ROLES: Final = ("gateway", "store", "router", "presence", "push")
_AUTHORITY: Final = "ca"
_AUTHORITY_DAYS: Final = 3650  # everybody has to be given a new one when it ends
_CLOCKS: Final = timedelta(hours=1)  # others' clocks may be behind ours by that much
_KEY_USAGES: Final = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


class CertificateFilesError(Exception):
    """The files are there already, are not there, or can't be read or written."""


def _files(name: str) -> tuple[str, str]:
    return f"{name}.pem", f"{name}-key.pem"


def has_authority(folder: Path) -> bool:
    """Tell whether the authority's certificate and key are there."""
    return all((folder / name).exists() for name in _files(_AUTHORITY))


def missing_roles(folder: Path) -> tuple[str, ...]:
    """Return the roles of which nothing is there. Raises CertificateFilesError: half of a pair."""
    for role in ROLES:
        there = [name for name in _files(role) if (folder / name).exists()]
        if len(there) == 1:
            raise CertificateFilesError(f"{folder / there[0]} is there without its other half: remove it, or bring that back")
    return tuple(role for role in ROLES if not (folder / _files(role)[0]).exists())


def make_authority(folder: Path) -> None:
    """Make ca.pem and ca-key.pem. Raises CertificateFilesError: something that would be made is there already."""
    names = [name for role in (_AUTHORITY, *ROLES) for name in _files(role)]
    there = [str(folder / name) for name in names if (folder / name).exists()]
    if there:
        raise CertificateFilesError(f"{', '.join(there)}: there already. Renew certificates with --renew, or name another folder")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Parley services")])
    public = key.public_key()
    builder = _builder(name, name, public, timedelta(days=_AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    # It certifies our roles and nothing else, also if its key is stolen.
    constraint = x509.NameConstraints([x509.DNSName(ROLE_DOMAIN.removeprefix("."))], None)
    builder = builder.add_extension(constraint, critical=True)
    _write_pair(folder, _AUTHORITY, key, builder.sign(key, hashes.SHA256()), replace=False)


def make_leaves(folder: Path, valid_for: timedelta, roles: Sequence[str] = ROLES, *, replace: bool = False) -> None:
    """Make a key and a certificate for each role, signed by the authority in the folder. Raises CertificateFilesError."""
    try:
        authority = x509.load_pem_x509_certificate((folder / f"{_AUTHORITY}.pem").read_bytes())
        authority_key = serialization.load_pem_private_key((folder / f"{_AUTHORITY}-key.pem").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CertificateFilesError(f"{folder} holds no usable authority: {error}") from error
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    for role in roles:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
        builder = _builder(name, authority.subject, key.public_key(), valid_for)
        names = x509.SubjectAlternativeName([x509.DNSName(role + ROLE_DOMAIN)])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])  # every service is both
        builder = builder.add_extension(usages, critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        _write_pair(folder, role, key, builder.sign(authority_key, hashes.SHA256()), replace=replace)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, valid_for: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - _CLOCKS).not_valid_after(now + valid_for)


def _usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in wanted for usage in _KEY_USAGES})


def _write_pair(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, *, replace: bool) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    _write(folder / f"{name}-key.pem", private, 0o600, replace=replace)
    _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644, replace=replace)


def _write(file: Path, content: bytes, mode: int, *, replace: bool) -> None:
    """Write a file whole, or not at all; it is never readable by more than `mode` says."""
    new = file.with_suffix(".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)  # what a run left that was killed
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as written:
            written.write(content)
        if replace:
            new.replace(file)
        else:
            try:
                os.link(new, file)  # unlike a rename, refuses what is there
            finally:
                new.unlink()
    except OSError as error:
        raise CertificateFilesError(f"{file} can't be written: {error.strerror}") from error
