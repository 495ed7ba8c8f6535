"""Page tokens: where a list goes on, bound to the question that they were given for.

Not a secret and no permission (every page is authorised anew): the checksum only tells tokens from elsewhere apart, and whoever
computes one may ask from where he likes, if that is a place at all.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

from chassis.errors import InvalidArgument

T = TypeVar("T")

_CHECKSUM_BYTES = 8
_MAX_CHARS = 8192  # a cursor holds one id of at most 128 bytes, or those of a page of 200 conversations: 5,800 bytes


def encode_page_token(question: str, cursor: str) -> str:
    """Return a token that leads on from `cursor` in the list that `question` names."""
    data = cursor.encode()
    return urlsafe_b64encode(_checksum(question, data) + data).decode()


def decode_page_token(question: str, token: str, parse: Callable[[str], T]) -> T:
    """Return the parsed cursor. Raises InvalidArgument if the token is not of this question, or `parse` a ValueError."""
    try:
        raw = urlsafe_b64decode(token.encode()) if len(token) <= _MAX_CHARS else b""
        checksum, data = raw[:_CHECKSUM_BYTES], raw[_CHECKSUM_BYTES:]
        if checksum == _checksum(question, data):
            return parse(data.decode())
    except (Base64Error, UnicodeError, ValueError):
        pass  # not ours: told below, like one that decodes but is of another question
    raise InvalidArgument("PAGE_TOKEN_INVALID", "page_token is not one that this list gave out")


def _checksum(question: str, data: bytes) -> bytes:
    return blake2b(question.encode() + b"\0" + data, digest_size=_CHECKSUM_BYTES).digest()
