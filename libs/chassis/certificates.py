"""TLS files as a process uses them: read at the start, read again when they change, the last good ones kept.

In the certificate of a service stands its role, as the name `<role>.parley.internal`: whoever connects expects the role that it
wants to talk to, wherever that runs, and whoever is called looks at the caller's.
"""

import ssl
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import structlog
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

ROLE_DOMAIN: Final = ".parley.internal"  # .internal is nobody's on the Internet, so no public authority certifies it

_WARN_BEFORE: Final = timedelta(days=14)  # who renews by hand needs a week; what renews by itself does it sooner

_log = structlog.get_logger()


class TlsError(Exception):
    """The TLS files can't be used."""


class TlsFiles(NamedTuple):
    """A certificate (with its chain) and its private key, PEM; `ca`: whose certificates the other side must show."""

    certificate: Path
    key: Path
    ca: Path | None = None


class Pems(NamedTuple):
    """What the files hold, checked. `version` counts changes."""

    certificate: bytes
    key: bytes
    ca: bytes | None
    version: int

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return it as gRPC wants it of a server."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.ca)


class Certificates:
    """The present content of TLS files. Threads may share it: gRPC asks in handshakes, on threads of its own."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files. Raises TlsError that names them: missing, garbage, not belonging together, expired."""
        self.files = files
        self._lock = threading.Lock()
        self._signature = self._sign()
        self._pems = self._read(0)

    def current(self) -> Pems:
        """Return what the files hold now; while they are not usable, what they held when they last were.

        A new certificate and its key are two files: between their changes they do not belong together, for a moment.
        """
        with self._lock:
            signature = self._sign()
            if signature != self._signature:
                self._signature = signature
                try:
                    self._pems = self._read(self._pems.version + 1)
                except TlsError as error:
                    _log.error("tls.files_unusable", error=str(error))
                else:
                    _log.info("tls.files_changed", certificate=str(self.files.certificate))
            return self._pems

    def require_role(self, role: str) -> None:
        """Check that the certificate is one for this role. Raises TlsError."""
        roles = roles_of(_names(x509.load_pem_x509_certificate(self.current().certificate)))
        if role not in roles:
            shown = f"for {', '.join(sorted(roles))}" if roles else "for no role"
            raise TlsError(f"{self.files.certificate} is a certificate {shown}, and this is a {role}: it needs {role}{ROLE_DOMAIN}")

    def _sign(self) -> list[tuple[int, int, int] | None]:
        signature: list[tuple[int, int, int] | None] = []
        for file in self.files:
            try:
                stat = file.stat() if file is not None else None
            except OSError:
                stat = None
            signature.append(stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return signature

    def _read(self, version: int) -> Pems:
        certificate, key, ca = self.files
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)  # gRPC would only fail to bind, or every handshake
            pems = Pems(certificate.read_bytes(), key.read_bytes(), None if ca is None else ca.read_bytes(), version)
            leaf = x509.load_pem_x509_certificate(pems.certificate)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise TlsError(f"certificate {certificate} with key {key} can't be used: {error}") from error
        if leaf.not_valid_after_utc < datetime.now(UTC):
            raise TlsError(f"certificate {certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
        if leaf.not_valid_after_utc < datetime.now(UTC) + _WARN_BEFORE:
            _log.warning(
                "tls.certificate_expires", certificate=str(certificate), on=f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        if ca is not None:
            try:
                context.load_verify_locations(ca)
            except (OSError, ValueError) as error:
                raise TlsError(f"trusted certificates {ca} can't be used: {error}") from error
        return pems


def roles_of(names: Iterable[str]) -> frozenset[str]:
    """Return the roles among a certificate's names."""
    return frozenset(name.removesuffix(ROLE_DOMAIN) for name in names if name.endswith(ROLE_DOMAIN))


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return []
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)


def dynamic_server_credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return credentials whose every handshake uses what the files hold then. With a CA, peers without its certificate are cut."""
    pems = certificates.current()
    version = pems.version

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal version
        now = certificates.current()
        if now.version == version:
            return None
        version = now.version
        return now.server_configuration()

    mutual = pems.ca is not None
    return grpc.dynamic_ssl_server_credentials(pems.server_configuration(), fetch, mutual)  # type: ignore[arg-type]  # None: as before
