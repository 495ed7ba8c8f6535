"""The development key: made at first start, so that a laptop needs no identity provider. It signs whatever it is asked to."""

import os
import secrets
import stat
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

KEY_FILE_NAME = "token-key.pem"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyFileError(Exception):
    """A key file can't be used; the message says why and what to do."""


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in the file, made now if there is none: mode 0600, whole or not at all, one winner among racing processes.

    Raises KeyFileError for a file that others may read, that holds something else, or that can't be made or read.
    """
    try:
        if not path.exists():
            _create(path)
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"the key {path} can't be used: {error.strerror}") from error
    if mode & _OTHERS:
        raise KeyFileError(f"{path} can be read by others: whoever has it can sign tokens; chmod 600 it or remove it")
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: one that asks for a password
        raise KeyFileError(f"{path} holds no private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds another kind of key than Ed25519")
    return key


def _create(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(scratch, path)  # unlike a rename it never replaces the key that a racing process has made meanwhile
        except FileExistsError:
            return
    finally:
        scratch.unlink()


def mint_token(key: Ed25519PrivateKey, user_id: str, device_id: str, ttl_seconds: float, now_seconds: float) -> str:
    """Sign a token for a user; a device id that is not empty pins the device."""
    claims: dict[str, object] = {"sub": user_id, "iat": int(now_seconds), "exp": int(now_seconds + ttl_seconds)}
    if device_id:
        claims["device"] = device_id
    return jwt.encode(claims, key, algorithm="EdDSA")
