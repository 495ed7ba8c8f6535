"""Where bearer tokens come from: a fixed string, or the app's function that gets a fresh one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

Token: TypeAlias = str | Callable[[], Awaitable[str]]
Metadata: TypeAlias = tuple[tuple[str, str], ...]


class TokenUnavailableError(Exception):
    """Raised by the app's function where a token can't be had now: the client tries again later."""


class TokenSource:
    """Holds the token in use; asks the app for another only when the server refuses it."""

    def __init__(self, token: Token, timeout_seconds: float) -> None:
        self._source = token
        self._timeout_seconds = timeout_seconds
        self._current = token if isinstance(token, str) else ""

    @property
    def is_renewable(self) -> bool:
        """Whether there can be another token."""
        return not isinstance(self._source, str)

    async def metadata(self) -> Metadata:
        """Return the call metadata that carries the token. Raises TokenUnavailableError."""
        if not self._current and not isinstance(self._source, str):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    self._current = await self._source()
            except TimeoutError:
                raise TokenUnavailableError(f"none within {self._timeout_seconds:g} s") from None
        return (("authorization", f"Bearer {self._current}"),)

    def expire(self) -> None:
        """Forget the token: the server refuses it. A fixed one stays."""
        if self.is_renewable:
            self._current = ""
