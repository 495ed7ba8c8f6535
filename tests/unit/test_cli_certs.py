"""`parley certs`: what it makes, who may read it, and that it destroys nothing."""

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.x509.oid import NameOID

from chassis.certificates import Certificates, TlsFiles
from chassis.config import ConfigError, load_settings
from chassis.process_config import InternalSettings
from parley_cli.__main__ import main
from parley_cli.certificates import ROLES

FILES = sorted(name for role in ("ca", *ROLES) for name in (f"{role}.pem", f"{role}-key.pem"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["certs", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert run(str(tmp_path / "certs"), "--days", "30").exit_code == 0
    return tmp_path / "certs"


def test_each_service_gets_a_certificate_for_its_role_and_keys_are_their_owner_s(folder: Path) -> None:
    assert sorted(contents(folder)) == FILES
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("*-key.pem")} == {0o600}
    for role in ROLES:
        Certificates(TlsFiles(folder / f"{role}.pem", folder / f"{role}-key.pem", folder / "ca.pem")).require_role(role)
        leaf = x509.load_pem_x509_certificate((folder / f"{role}.pem").read_bytes())
        assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == role
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 30
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem", "store.pem", "push-key.pem"])
def test_what_is_there_is_named_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    result = run(str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path / name) in result.output
    assert "--renew" in result.output
    assert contents(tmp_path) == {name: b"precious"}


def test_renewing_makes_new_ones_from_the_same_authority(folder: Path) -> None:
    before = contents(folder)
    assert run(str(folder), "--renew").exit_code == 0
    after = contents(folder)
    assert sorted(after) == FILES
    assert {name for name in FILES if after[name] == before[name]} == {"ca.pem", "ca-key.pem"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("*-key.pem")} == {0o600}


def test_renewing_without_an_authority_says_what_is_missing(tmp_path: Path) -> None:
    result = run(str(tmp_path), "--renew")
    assert result.exit_code == 2
    assert "ca.pem" in result.output
    assert contents(tmp_path) == {}


def test_what_is_missing_is_made_and_no_more(tmp_path: Path) -> None:
    assert run(str(tmp_path), "--missing").exit_code == 0
    before = contents(tmp_path)
    assert sorted(before) == FILES
    again = run(str(tmp_path), "--missing")
    assert (again.exit_code, contents(tmp_path)) == (0, before)
    assert "already" in again.output
    for name in ("store.pem", "store-key.pem"):
        (tmp_path / name).unlink()
    assert run(str(tmp_path), "--missing").exit_code == 0
    after = contents(tmp_path)
    assert {name for name in FILES if after[name] != before[name]} == {"store.pem", "store-key.pem"}
    Certificates(TlsFiles(tmp_path / "store.pem", tmp_path / "store-key.pem", tmp_path / "ca.pem")).require_role("store")


@pytest.mark.parametrize("gone", ["store.pem", "push-key.pem", "ca.pem"])
def test_half_of_a_pair_is_named_and_nothing_is_made(folder: Path, gone: str) -> None:
    (folder / gone).unlink()
    before = contents(folder)
    result = run(str(folder), "--missing")
    assert result.exit_code == 2
    assert str(folder) in result.output
    assert contents(folder) == before


def test_renewing_and_completing_are_two_things(folder: Path) -> None:
    assert run(str(folder), "--renew", "--missing").exit_code == 2


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(str(tmp_path / "file" / "certs"))
    assert result.exit_code == 2
    assert str(tmp_path / "file") in result.output


# What services make of it


def internal(**environ: str) -> InternalSettings:
    return load_settings(InternalSettings, {f"PARLEY_INTERNAL_{name}": value for name, value in environ.items()})


def test_beyond_loopback_a_service_needs_certificates_or_to_be_told() -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:1 is beyond loopback and needs TLS_CA_FILE.*parley certs"):
        internal(LISTEN="10.0.0.1:1")
    internal(LISTEN="10.0.0.1:1", ALLOW_PLAINTEXT_BEYOND_LOOPBACK="true")
    internal(LISTEN="10.0.0.1:1", TLS_CA_FILE="ca", TLS_CERTIFICATE_FILE="c", TLS_KEY_FILE="k")
    assert internal(LISTEN="127.0.0.1:1").certificates("store") is None


@pytest.mark.parametrize("given", [{"TLS_CA_FILE": "ca"}, {"TLS_CERTIFICATE_FILE": "c", "TLS_KEY_FILE": "k"}])
def test_half_of_the_files_is_a_mistake(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        internal(**given)


def test_the_settings_lead_to_the_files(folder: Path) -> None:
    files = {"CA": "ca.pem", "CERTIFICATE": "store.pem", "KEY": "store-key.pem"}
    certificates = internal(**{f"TLS_{what}_FILE": str(folder / name) for what, name in files.items()}).certificates("store")
    assert certificates is not None
    assert certificates.current().ca == (folder / "ca.pem").read_bytes()
