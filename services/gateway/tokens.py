"""Who is calling: tokens that the app's backend signed, checked once and remembered until they end."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from chassis.clock import Clock
from chassis.errors import Unauthenticated
from parley_protocol.ids import is_app_id

PublicKey: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

_MIN_RSA_BITS = 2048  # shorter ones are broken by those who can pay for it
_MAX_TOKEN_CHARS = 8192  # gRPC's own bound of all metadata of a call
_LEEWAY_MS = 30_000  # clocks of servers that keep time differ by less
_CACHED_TOKENS = 4096  # ~0.5 kB each: a device's calls come after its Connect, of which there are some 500 a second; again: ~150 us
_HEADER = "authorization"
_SCHEME = "bearer "

_log = structlog.get_logger()


class KeysFileError(Exception):
    """A file of public keys can't be used; the message says why."""


class Claims(NamedTuple):
    """What a verified token says."""

    user_id: str
    device_id: str  # the device that it is pinned to, or empty
    expires_ms: int  # wall time from which it counts no more, leeway for wrong clocks included


class VerifyingKey(NamedTuple):
    """A public key and the one algorithm that it may be used with: a token never chooses."""

    key: PublicKey
    algorithm: str


class KeyRing:
    """The public keys that tokens may be signed with, by key id; the empty id is a key that has none."""

    def __init__(self, keys: Mapping[str, VerifyingKey]) -> None:
        self._keys = keys
        self._only = next(iter(keys.values())) if len(keys) == 1 else None

    def find(self, key_id: str) -> VerifyingKey | None:
        """Return the key of that id; a token that names none may use the only key, and a key without an id serves all tokens."""
        if key_id in self._keys:
            return self._keys[key_id]
        return self._only if self._only is not None and (not key_id or "" in self._keys) else None


def verifying_key(key: object) -> VerifyingKey | None:
    """Return the key with its algorithm (EdDSA, ES256 or RS256), or None for a kind or strength that is not taken."""
    match key:
        case Ed25519PublicKey():
            return VerifyingKey(key, "EdDSA")
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return VerifyingKey(key, "ES256")
        case RSAPublicKey(key_size=bits) if bits >= _MIN_RSA_BITS:
            return VerifyingKey(key, "RS256")
    return None


def parse_keys(text: bytes) -> KeyRing:
    """Read a public key (PEM) or a JSON Web Key Set; keys of a set that can't verify our algorithms are passed over.

    Raises KeysFileError if nothing usable is left.
    """
    keys: dict[str, VerifyingKey] = {}
    try:
        if not text.lstrip().startswith(b"{"):
            if (found := verifying_key(load_pem_public_key(text))) is not None:
                keys[""] = found
        else:
            for jwk in jwt.PyJWKSet.from_dict(json.loads(text)):
                if jwk.public_key_use != "enc" and (found := verifying_key(jwk.key)) is not None:
                    keys[jwk.key_id or ""] = found
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, UnsupportedAlgorithm, jwt.PyJWTError) as error:
        raise KeysFileError(f"neither a public key (PEM) nor a JSON Web Key Set: {error}") from error
    if not keys:
        raise KeysFileError("no key for EdDSA, ES256 or RS256 (2,048 bits or more)")
    return KeyRing(keys)


class KeysFile:
    """A file of public keys that may be replaced while the server runs. Its content is read at once and on `changed`."""

    def __init__(self, path: Path) -> None:
        """Raises KeysFileError."""
        self._path = path
        try:
            self._seen = self._identity()
            self.ring = self._read()
        except OSError as error:
            raise KeysFileError(f"the token keys {path} can't be read: {error.strerror}") from error

    def _identity(self) -> tuple[int, int, int]:
        about = self._path.stat()
        return about.st_mtime_ns, about.st_size, about.st_ino

    def _read(self) -> KeyRing:
        try:
            return parse_keys(self._path.read_bytes())
        except KeysFileError as error:
            raise KeysFileError(f"{self._path}: {error}") from error

    def changed(self) -> KeyRing | None:
        """Return the new keys if the file was replaced. An unusable one is logged once and changes nothing.

        Blocks for one stat of a local file, ~2 us, so that it needs no thread.
        """
        try:
            if (identity := self._identity()) == self._seen:
                return None
            self._seen = identity
            self.ring = self._read()
        except (OSError, KeysFileError) as error:
            if self._seen != (0, 0, 0):
                _log.warning("gateway.token_keys_unusable", path=str(self._path), error=str(error))
            self._seen = (0, 0, 0)
            return None
        _log.info("gateway.token_keys_replaced", path=str(self._path))
        return self.ring


class TokenVerifier:
    """Verifies tokens and remembers them, so that a device's unary calls cost no signature check each."""

    def __init__(
        self,
        ring: KeyRing,
        clock: Clock,
        *,
        audience: str = "",
        issuer: str = "",
        development: bool = False,
        changed: Callable[[], KeyRing | None] | None = None,
    ) -> None:
        """`development` marks the key that `keys.load_or_create_key` made; `changed` is asked for other keys by `refresh`."""
        self.development = development
        self._ring = ring
        self._clock = clock
        self._audience = audience
        self._issuer = issuer
        self._changed = changed
        self._known: dict[str, Claims] = {}

    def refresh(self) -> None:
        """Take over replaced keys and forget what the old ones verified. Streams that are open stay until their token ends."""
        if self._changed is not None and (ring := self._changed()) is not None:
            self._ring = ring
            self._known.clear()

    def authenticate(self, metadata: Mapping[str, str | bytes]) -> Claims:
        """Return who calls, from the call's metadata. Raises Unauthenticated."""
        header = metadata.get(_HEADER)
        if not isinstance(header, str) or header[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("TOKEN_MISSING", "send `authorization: Bearer <token>`")
        return self.verify(header[len(_SCHEME) :].strip())

    def verify(self, token: str) -> Claims:
        """Return what the token says. Raises Unauthenticated."""
        claims = self._known.get(token)
        if claims is None:
            claims = self._decode(token)
            if len(self._known) >= _CACHED_TOKENS:
                del self._known[next(iter(self._known))]  # the oldest: cheaper than use order, and it costs one check
            self._known[token] = claims
        if claims.expires_ms <= self._clock.wall_ms():
            self._known.pop(token, None)
            raise Unauthenticated("TOKEN_EXPIRED", "the token's time is over: ask for another")
        return claims

    def _decode(self, token: str) -> Claims:
        if len(token) > _MAX_TOKEN_CHARS:
            raise Unauthenticated("TOKEN_INVALID", "the token is too long")
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            found = self._ring.find(key_id) if isinstance(key_id, str) else None
            if found is None:
                raise Unauthenticated("TOKEN_INVALID", "the token is signed with an unknown key")
            payload = jwt.decode(
                token,
                found.key,
                algorithms=[found.algorithm],
                audience=self._audience or None,
                issuer=self._issuer or None,
                # Times are judged below, by the injected clock.
                options={
                    "require": ["sub", "exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": bool(self._audience),
                },
            )
        except (jwt.PyJWTError, RecursionError) as error:  # RecursionError: a header of nested brackets
            raise Unauthenticated("TOKEN_INVALID", f"the token is not accepted: {type(error).__name__}") from error
        return self._claims(payload)

    def _claims(self, payload: Mapping[str, object]) -> Claims:
        user_id, device_id = payload["sub"], payload.get("device", "")
        expires_ms, not_before_ms = _milliseconds(payload["exp"]), _milliseconds(payload.get("nbf", 0))
        if not isinstance(user_id, str) or not is_app_id(user_id):
            raise Unauthenticated("TOKEN_INVALID", "`sub` must be 1 to 128 characters of printable ASCII without space")
        if not isinstance(device_id, str) or (device_id and not is_app_id(device_id)):
            raise Unauthenticated("TOKEN_INVALID", "`device` must be 1 to 128 characters of printable ASCII without space")
        if expires_ms is None or not_before_ms is None:
            raise Unauthenticated("TOKEN_INVALID", "`exp` and `nbf` must be numbers of seconds")
        if not_before_ms - _LEEWAY_MS > self._clock.wall_ms():
            raise Unauthenticated("TOKEN_INVALID", "the token is not valid yet")
        return Claims(user_id, device_id, expires_ms + _LEEWAY_MS)


def _milliseconds(seconds: object) -> int | None:
    if isinstance(seconds, float):
        return int(seconds * 1000) if math.isfinite(seconds * 1000) else None
    return seconds * 1000 if isinstance(seconds, int) and not isinstance(seconds, bool) else None
