"""Consul's blocking queries as an endless sequence of answers, whatever happens to Consul."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Generic, NamedTuple, TypeVar

import structlog

from chassis.backoff import Backoff
from chassis.registry import RegistryUnavailableError

T = TypeVar("T")
Query = Callable[[int | None], Awaitable[tuple[str, T]]]  # by the index to wait beyond (None: answer at once); index and answer

_PAUSE_SECONDS: Final = 0.1  # from one answer to the next question: a storm of changes costs ten answers a second
_RETRY_MIN_SECONDS: Final = 0.1
_RETRY_MAX_SECONDS: Final = 2.0  # a Consul that is back is found within that

_log = structlog.get_logger()


class Answer(NamedTuple, Generic[T]):
    """What Consul answered, and whether it was away, or has lost its data, since the answer before."""

    value: T
    was_away: bool


async def follow(query: Query[T], what: str, rng: random.Random) -> AsyncGenerator[Answer[T], None]:
    """Yield each answer of a blocking query. It may be equal to the one before: a query's return is no proof of change.

    While Consul is away nothing comes. Then the first answer is asked for without an index, and so it is when an index went back,
    after a restart without data or from a snapshot: to wait for the old index could take for ever.
    """
    backoff = Backoff(_RETRY_MIN_SECONDS, _RETRY_MAX_SECONDS, rng)
    index: int | None = None
    was_away = False
    while True:
        try:
            answered, answer = await query(index)
        except RegistryUnavailableError as error:
            if not was_away:
                _log.warning("registry.away", watch=what, error=str(error))
            index, was_away = None, True
            await asyncio.sleep(backoff.failed(0))
            continue
        backoff.succeeded(0)
        new_index = max(int(answered), 1)  # 0 would not block
        if index is not None and new_index < index:
            _log.warning("registry.index_went_back", watch=what, index=new_index, before=index)
            index, was_away = None, True
        else:
            if was_away:
                _log.info("registry.back", watch=what)
            index = new_index
            yield Answer(answer, was_away)
            was_away = False
        await asyncio.sleep(_PAUSE_SECONDS)
