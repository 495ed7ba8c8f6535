"""Who was not here when something came, and how long nobody calls him offline."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from random import Random

from chassis.backoff import Backoff
from chassis.eventlog import LogEntry, LogUnavailableError
from chassis.testing.virtual_loop import VirtualClock, run_virtual
from parley.gateway.v1.gateway_service_pb2 import Unreached
from parley.log.v1.records_pb2 import OfflineBatch, OfflineRecord
from parley_protocol.slots import SLOT_COUNT, slot_of
from parley_protocol.topics import OFFLINE
from services.gateway.directory import Directory
from services.gateway.grace import Grace
from services.gateway.slots import Slots

SECONDS = 10.0


class Log:
    """The log of those who are offline: two partitions, each of which fails as often as it is told to."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.failures = {0: 0, 1: 0}
        self.tried: list[tuple[int, float]] = []  # partition, and when
        self.named: list[tuple[float, list[str]]] = []
        self.users: list[OfflineRecord] = []

    async def partition_count(self, topic: str) -> int:
        assert topic == OFFLINE
        return len(self.failures)

    async def append(self, topic: str, partition: int, entries: Sequence[LogEntry]) -> None:
        now = self._clock.monotonic()
        self.tried.append((partition, now))
        if self.failures[partition]:
            self.failures[partition] -= 1
            raise LogUnavailableError(topic)
        (entry,) = entries
        assert (topic, entry.key) == (OFFLINE, b"")
        users = OfflineBatch.FromString(entry.value).users
        self.users.extend(users)
        self.named.append((now, [user.user_id for user in users]))


class Scene:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.log = Log(self.clock)
        self.slots = Slots("g1", SLOT_COUNT, settle_seconds=0, slots_per_second=1)
        backoff = Backoff(0.1, 100.0, Random(1))
        self.grace = Grace(self.slots, Directory(), self.log, SECONDS, self.clock, backoff)  # type: ignore[arg-type]

    def own(self, *users: str, ago: float = 0.0) -> None:
        for user in users:
            self.slots.since[slot_of(user)] = self.clock.monotonic() - ago

    def defer(self, *users: str, conversation: str = "c") -> list[str]:
        """Tell of users who are not here; return those who are reported at once."""
        return [one.user_id for one in self.grace.defer([Unreached(conversation_id=conversation, seq=5, user_id=u) for u in users])]

    async def sleep_until(self, moment: float) -> None:
        await asyncio.sleep(moment - self.clock.monotonic())


def run_scene(story: Callable[[Scene], Awaitable[None]]) -> Scene:
    """Run a story, which begins at 0, while the scene names who did not come."""
    scene = Scene()

    async def main(_rng: Random) -> None:
        naming = asyncio.create_task(scene.grace.run())
        await asyncio.sleep(0)
        await story(scene)
        assert not naming.done()
        naming.cancel()
        await asyncio.wait([naming])

    run_virtual(main)
    return scene


def test_only_users_of_a_new_slot_get_time_to_come():
    async def story(scene: Scene) -> None:
        scene.own("new", ago=SECONDS - 1)
        scene.own("old", ago=SECONDS)
        assert scene.defer("new", "old", "elsewhere") == ["old", "elsewhere"]

    run_scene(story)


def test_each_is_named_once_his_own_time_is_over_with_all_that_push_needs():
    async def story(scene: Scene) -> None:
        scene.own("a", "b", "c", "d")
        for moment, users in ((0.0, ("a", "b")), (0.5, ("c",)), (3.0, ("d",))):
            await scene.sleep_until(moment)
            scene.defer(*users)
        await scene.sleep_until(40.0)
        scene.own("a")
        scene.defer("a")
        await scene.sleep_until(60.0)

    scene = run_scene(story)
    assert scene.log.named == [(10.0, ["a", "b"]), (10.5, ["c"]), (13.0, ["d"]), (50.0, ["a"])]
    assert scene.log.users[0] == OfflineRecord(user_id="a", conversation_id="c", seq=5)


def test_who_is_beyond_the_bound_of_memory_is_reported_at_once_and_batches_are_bounded():
    async def story(scene: Scene) -> None:
        users = [f"u{number}" for number in range(20_001)]
        scene.own(*users)
        assert scene.defer(*users) == ["u20000"]
        await scene.sleep_until(20.0)

    scene = run_scene(story)
    assert [len(users) for _, users in scene.log.named] == [500] * 40


def test_a_log_that_does_not_answer_is_asked_again_ever_more_seldom_and_nobody_is_lost():
    async def story(scene: Scene) -> None:
        for moment, failures in ((0.0, {0: 3, 1: 1}), (20.0, {0: 1, 1: 1})):
            await scene.sleep_until(moment)
            scene.own("a")
            scene.defer("a", conversation="c")  # of partition 0
            scene.defer("a", conversation="d")  # of partition 1
            scene.log.failures = failures
        await scene.sleep_until(40.0)

    scene = run_scene(story)
    assert [user.conversation_id for user in scene.log.users] == ["c", "d", "c", "d"]
    assert [partition for partition, _ in scene.log.tried] == [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    moments = [moment for _, moment in scene.log.tried]
    waits = [after - before for before, after in pairwise(moments)]
    for at, most in {0: 0.2, 1: 0.4, 2: 0.8, 4: 0.2, 6: 0.2, 8: 0.2}.items():  # twice as long after each failure in a row
        assert most / 2 <= waits[at] <= most
