"""The development key's file."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.gateway.keys import KEY_FILE_NAME, KeyFileError, load_or_create_key


def public_bytes(path: Path) -> bytes:
    return load_or_create_key(path).public_key().public_bytes_raw()


def test_key_is_made_once_and_kept(tmp_path: Path):
    path = tmp_path / KEY_FILE_NAME
    assert public_bytes(path) == public_bytes(path)


def test_key_file_is_for_its_owner_alone_and_nothing_else_is_left(tmp_path: Path):
    load_or_create_key(tmp_path / KEY_FILE_NAME)
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE_NAME]
    assert stat.S_IMODE((tmp_path / KEY_FILE_NAME).stat().st_mode) == 0o600


def test_losing_a_race_takes_the_winner_s_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process makes the file between our look and our write."""
    path = tmp_path / KEY_FILE_NAME
    winner = public_bytes(path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", lambda _self: False)
        assert public_bytes(path) == winner
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE_NAME]


def test_key_that_others_may_read_is_refused(tmp_path: Path):
    path = tmp_path / KEY_FILE_NAME
    load_or_create_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="read by others"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / KEY_FILE_NAME
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="no private key"):
        load_or_create_key(path)


def test_key_that_can_not_be_read_or_made_is_named(tmp_path: Path):
    (tmp_path / KEY_FILE_NAME).mkdir(mode=0o700)
    for path in (tmp_path / KEY_FILE_NAME, tmp_path / "missing" / KEY_FILE_NAME):
        with pytest.raises(KeyFileError, match=f"{path} can't be used: "):
            load_or_create_key(path)


def test_other_kind_of_key_is_refused(tmp_path: Path):
    path = tmp_path / KEY_FILE_NAME
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="another kind"):
        load_or_create_key(path)
