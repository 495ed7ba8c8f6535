"""Which tokens are taken, and as whom."""

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chassis.errors import Unauthenticated
from services.gateway.keys import mint_token
from services.gateway.tokens import Claims, KeyRing, KeysFile, KeysFileError, TokenVerifier, parse_keys, verifying_key

NOW = 1_700_000_000
LEEWAY = 30
ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class SettableClock:
    """A clock that a test sets."""

    def __init__(self, seconds: float = NOW) -> None:
        self.seconds = seconds

    def wall_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def jwk(key: Any, algorithm: str, **fields: str) -> dict[str, Any]:
    return {**jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True), **fields}


def verifier(ring: KeyRing | None = None, clock: SettableClock | None = None, **settings: Any) -> TokenVerifier:
    return TokenVerifier(ring or parse_keys(pem(ED25519)), clock or SettableClock(), **settings)


def signed(claims: Mapping[str, object], key: Any = ED25519, algorithm: str = "EdDSA", **headers: Any) -> str:
    return jwt.encode({"sub": "alice", "exp": NOW + 60, **claims}, key, algorithm=algorithm, headers=headers or None)


def refusal(token: str, verifying: TokenVerifier | None = None) -> str:
    with pytest.raises(Unauthenticated) as error:
        (verifying or verifier()).verify(token)
    return error.value.reason


def segment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def test_minted_token_names_user_and_device():
    assert verifier().verify(mint_token(ED25519, "alice", "phone", 60, NOW)) == Claims("alice", "phone", (NOW + 60 + LEEWAY) * 1000)
    assert verifier().verify(mint_token(ED25519, "alice", "", 60, NOW)).device_id == ""


@pytest.mark.parametrize(("key", "algorithm"), [(ED25519, "EdDSA"), (P256, "ES256"), (RSA, "RS256")])
def test_each_algorithm_verifies_with_its_kind_of_key(key: Any, algorithm: str):
    assert verifier(parse_keys(pem(key))).verify(signed({}, key, algorithm)).user_id == "alice"


def test_algorithm_is_the_key_s_never_the_token_s():
    """No `none`, and no HMAC keyed with the public key."""
    payload = segment(json.dumps({"sub": "alice", "exp": NOW + 60}).encode())
    for header in ({"alg": "none"}, {"alg": "None"}, {}):
        assert refusal(f"{segment(json.dumps(header).encode())}.{payload}.") == "TOKEN_INVALID"
    signing_input = f"{segment(json.dumps({'alg': 'HS256'}).encode())}.{payload}"
    mac = hmac.new(pem(RSA), signing_input.encode(), hashlib.sha256).digest()
    assert refusal(f"{signing_input}.{segment(mac)}", verifier(parse_keys(pem(RSA)))) == "TOKEN_INVALID"
    assert refusal(signed({}, RSA, "RS512"), verifier(parse_keys(pem(RSA)))) == "TOKEN_INVALID"


def test_wrong_signature_is_refused():
    assert refusal(signed({}, ed25519.Ed25519PrivateKey.generate())) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b.c", "\x00", "é" * 10, "x" * 10_000, segment(b"[" * 5000) + ".e30.e30", segment(b'{"alg":1}') + ".e30.e30"],
)
def test_garbage_is_refused_politely(token: str):
    assert refusal(token) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": ""},
        {"sub": 7},
        {"sub": "a b"},
        {"sub": "a\n"},
        {"sub": "x" * 129},
        {"sub": "ü"},
        {"device": 1},
        {"device": "a b"},
        {"device": "x" * 129},
        {"exp": "soon"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": NOW + LEEWAY + 1},
        {"nbf": "x"},
    ],
)
def test_claims_that_make_no_sense_are_refused(claims: dict[str, object]):
    assert refusal(signed(claims)) == "TOKEN_INVALID"


@pytest.mark.parametrize("missing", ["sub", "exp"])
def test_subject_and_end_are_required(missing: str):
    claims = {"sub": "alice", "exp": NOW + 60}
    del claims[missing]
    assert refusal(jwt.encode(claims, ED25519, algorithm="EdDSA")) == "TOKEN_INVALID"


def test_far_end_is_fine():
    assert verifier().verify(signed({"exp": 10**30})).user_id == "alice"


def test_token_ends_after_its_time_and_leeway_also_when_remembered():
    clock = SettableClock()
    verifying = verifier(clock=clock)
    token = signed({"exp": NOW + 60})
    clock.seconds = NOW + 60 + LEEWAY - 1
    assert verifying.verify(token).user_id == "alice"
    clock.seconds += 1
    assert refusal(token, verifying) == "TOKEN_EXPIRED"


def test_verified_token_is_not_verified_again(monkeypatch: pytest.MonkeyPatch):
    verifying = verifier()
    token = signed({})
    verifying.verify(token)
    monkeypatch.setattr(jwt, "decode", None)
    assert verifying.verify(token).user_id == "alice"


@pytest.mark.parametrize("metadata", [{}, {"authorization": ""}, {"authorization": "Basic x"}, {"authorization": b"Bearer x"}])
def test_call_without_bearer_token_is_told_so(metadata: dict[str, str | bytes]):
    with pytest.raises(Unauthenticated) as error:
        verifier().authenticate(metadata)
    assert error.value.reason == "TOKEN_MISSING"


def test_scheme_is_read_in_any_case():
    assert verifier().authenticate({"authorization": f"bearer {signed({})}"}).user_id == "alice"


def test_audience_and_issuer_are_checked_where_configured():
    verifying = verifier(audience="chat", issuer="idp")
    assert refusal(signed({"aud": "other", "iss": "idp"}), verifying) == "TOKEN_INVALID"
    assert refusal(signed({"aud": "chat", "iss": "other"}), verifying) == "TOKEN_INVALID"
    assert refusal(signed({}), verifying) == "TOKEN_INVALID"
    assert verifying.verify(signed({"aud": ["x", "chat"], "iss": "idp"})).user_id == "alice"
    assert verifier().verify(signed({"aud": "whatever", "iss": "idp"})).user_id == "alice"


def test_key_set_is_searched_by_key_id():
    ring = parse_keys(json.dumps({"keys": [jwk(P256, "ES256", kid="a"), jwk(RSA, "RS256", kid="b")]}).encode())
    verifying = verifier(ring)
    assert verifying.verify(signed({}, RSA, "RS256", kid="b")).user_id == "alice"
    assert refusal(signed({}, RSA, "RS256", kid="a"), verifying) == "TOKEN_INVALID"
    assert refusal(signed({}, RSA, "RS256", kid="c"), verifying) == "TOKEN_INVALID"
    assert refusal(signed({}, RSA, "RS256"), verifying) == "TOKEN_INVALID"


def test_only_key_of_a_set_serves_tokens_without_key_id_but_not_those_with_another():
    verifying = verifier(parse_keys(json.dumps({"keys": [jwk(P256, "ES256", kid="a")]}).encode()))
    assert verifying.verify(signed({}, P256, "ES256")).user_id == "alice"
    assert refusal(signed({}, P256, "ES256", kid="z"), verifying) == "TOKEN_INVALID"


def test_keys_of_a_set_that_are_for_something_else_are_passed_over():
    secret = {"kty": "oct", "k": segment(b"x" * 32), "kid": "s"}
    keys = [secret, jwk(RSA, "RS256", kid="e", use="enc"), jwk(ED25519, "EdDSA", kid="ok"), {"kty": "weird"}]
    verifying = verifier(parse_keys(json.dumps({"keys": keys}).encode()))
    assert verifying.verify(signed({}, kid="ok")).user_id == "alice"
    assert refusal(signed({}, RSA, "RS256", kid="e"), verifying) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b'{"keys": 5}',
        b'{"keys": [{"kty": "oct", "k": "eHh4"}]}',
        b"nonsense",
        pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
        pem(ec.generate_private_key(ec.SECP384R1())),
    ],
)
def test_keys_that_can_not_be_used_are_refused(text: bytes):
    with pytest.raises(KeysFileError):
        parse_keys(text)


def test_secret_or_weak_keys_have_no_algorithm():
    assert verifying_key(b"secret") is None
    assert verifying_key(ec.generate_private_key(ec.SECP384R1()).public_key()) is None


def replace(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def test_replaced_keys_are_taken_over_and_old_tokens_forgotten(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_bytes(pem(ED25519))
    keys = KeysFile(path)
    verifying = verifier(keys.ring, changed=keys.changed)
    old, new = signed({}), signed({}, P256, "ES256")
    verifying.verify(old)
    verifying.refresh()
    verifying.verify(old)
    replace(path, pem(P256))
    verifying.refresh()
    assert verifying.verify(new).user_id == "alice"
    assert refusal(old, verifying) == "TOKEN_INVALID"


def test_broken_or_missing_replacement_changes_nothing(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_bytes(pem(ED25519))
    keys = KeysFile(path)
    verifying = verifier(keys.ring, changed=keys.changed)
    for break_file in (lambda: replace(path, b"nonsense"), path.unlink):
        break_file()
        verifying.refresh()
        assert verifying.verify(signed({})).user_id == "alice"
    path.write_bytes(pem(P256))
    verifying.refresh()
    assert verifying.verify(signed({}, P256, "ES256")).user_id == "alice"


def test_unusable_file_at_start_is_named(tmp_path: Path):
    path = tmp_path / "keys"
    path.write_bytes(b"nonsense")
    with pytest.raises(KeysFileError, match=str(path)):
        KeysFile(path)
    with pytest.raises(KeysFileError, match=r"missing\.json can't be read: No such file"):
        KeysFile(tmp_path / "missing.json")
