import asyncio
from collections.abc import Sequence

import pytest

from chassis.joined import Joined


class GivenUpError(Exception):
    pass


class Recorder:
    """What was called, and how it ends once it may."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[str]) -> int:
        self.calls.append(list(items))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return len(items)


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def joined(recorder: Recorder) -> Joined[str, int]:
    return Joined(recorder, GivenUpError)


async def begin(joined: Joined[str, int], *groups: str) -> list[asyncio.Task[int]]:
    """Call for each group in one turn of the loop, and return once what comes of it is under way."""
    tasks = [asyncio.create_task(joined(list(group))) for group in groups]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_what_is_called_in_one_turn_is_one_call_in_order(joined, recorder):
    first = await begin(joined, "ab", "c", "de")
    second = await begin(joined, "f")  # the first call is still under way: it does not wait for it
    assert recorder.calls == [list("abcde"), ["f"]]
    recorder.go_on.set()
    assert await asyncio.gather(*first, *second) == [5, 5, 5, 1]


async def test_all_share_the_error(joined, recorder):
    recorder.error = OSError("away")
    tasks = await begin(joined, "a", "b")
    recorder.go_on.set()
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["away", "away"]
    recorder.error = None
    assert await joined(["c"]) == 1


@pytest.mark.parametrize("turns", [0, 1])
async def test_those_whose_first_caller_is_cancelled_are_told(joined, recorder, turns):
    """Also when that happens before the call was made."""
    first, second = (asyncio.create_task(joined([name])) for name in "ab")
    await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(GivenUpError):
        await second
    assert first.cancelled() or await asyncio.gather(first, return_exceptions=True)
    assert recorder.calls == [["a", "b"]] * turns
    recorder.go_on.set()
    assert await joined(["c"]) == 1


async def test_one_who_joined_and_is_cancelled_leaves_the_others_alone(joined, recorder):
    first, second, third = await begin(joined, "a", "b", "c")
    second.cancel()
    recorder.go_on.set()
    assert (await first, await third) == (3, 3)
    assert second.cancelled()
