"""Blocking queries: what is asked next, and how often, whatever Consul answers."""

import asyncio
from contextlib import aclosing
from itertools import pairwise
from random import Random

import mutation
import pytest

from chassis import registry_consul_watch
from chassis.registry import RegistryUnavailableError
from chassis.registry_consul_watch import follow
from chassis.testing.virtual_loop import run_virtual

AWAY = RegistryUnavailableError("away")


class Consul:
    """Answers as scripted: (index, answer) or an error; then it blocks. Notes what it was asked, and when."""

    def __init__(self, *script):
        self._script = list(script)
        self.asked = []
        self.times = []

    async def query(self, index):
        self.asked.append(index)
        self.times.append(asyncio.get_running_loop().time())
        if not self._script:
            await asyncio.Event().wait()
        answer = self._script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer[0]), answer[1]


def watch(consul, count):
    """Return the first answers, and what was asked until it blocked."""

    async def main(rng):
        async with aclosing(follow(consul.query, "test", rng)) as answers:
            shown = [await anext(answers) for _ in range(count)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(60):
                    await anext(answers)
        return [tuple(answer) for answer in shown]

    return run_virtual(main)


def test_each_answer_is_followed_by_a_question_beyond_it():
    consul = Consul((5, "a"), (5, "a"), (9, "b"))
    assert watch(consul, 3) == [("a", False), ("a", False), ("b", False)]
    assert consul.asked == [None, 5, 5, 9]


def test_an_index_that_went_back_is_forgotten_and_the_answer_asked_for_anew():
    consul = Consul((100, "a"), (7, "old news"), (8, "b"))
    assert watch(consul, 2) == [("a", False), ("b", True)]
    assert consul.asked == [None, 100, None, 8]


def test_after_an_outage_the_first_question_does_not_block():
    consul = Consul((100, "a"), AWAY, AWAY, (101, "b"), (102, "c"))
    assert watch(consul, 3) == [("a", False), ("b", True), ("c", False)]
    assert consul.asked == [None, 100, None, None, 101, 102]


def test_index_0_would_not_block_and_is_never_asked_with():
    consul = Consul((0, "a"), (0, "a"))
    watch(consul, 2)
    assert consul.asked == [None, 1, 1]


@pytest.mark.parametrize(("script", "seconds"), [([(n, n) for n in range(1, 50)], 0.1), ([AWAY] * 49, 0.1)])
def test_neither_a_storm_of_changes_nor_an_outage_makes_it_ask_without_pause(script, seconds):
    consul = Consul(*script)
    watch(consul, sum(not isinstance(answer, Exception) for answer in script))
    assert all(later - earlier >= seconds - 1e-9 for earlier, later in pairwise(consul.times))


def test_a_consul_that_is_back_is_found_within_seconds():
    consul = Consul(*[AWAY] * 30, (1, "a"))
    assert watch(consul, 1) == [("a", True)]
    assert max(later - earlier for earlier, later in pairwise(consul.times)) <= 2.0


def test_a_follower_is_random_only_by_what_it_is_given():
    async def main(rng):
        consul = Consul(*[AWAY] * 5, (1, "a"))
        async with aclosing(follow(consul.query, "test", Random(7))) as answers:
            await anext(answers)
        return consul.times

    assert run_virtual(main) == run_virtual(main, seed=1)


BROKEN_RULES = {
    "an index that went back is waited for": (
        "new_index < index",
        "False",
        test_an_index_that_went_back_is_forgotten_and_the_answer_asked_for_anew,
    ),
    "after an outage the old index is waited for": (
        "index, was_away = None, True\n            await",
        "was_away = True\n            await",
        test_after_an_outage_the_first_question_does_not_block,
    ),
    "index 0 is asked with": ("max(int(answered), 1)", "int(answered)", test_index_0_would_not_block_and_is_never_asked_with),
    "a storm of changes is followed without pause": (
        "_PAUSE_SECONDS",
        "0",
        lambda: test_neither_a_storm_of_changes_nor_an_outage_makes_it_ask_without_pause([(n, n) for n in range(1, 9)], 0.1),
    ),
    "a Consul that is away is asked without pause": (
        "backoff.failed(0)",
        "0",
        lambda: test_neither_a_storm_of_changes_nor_an_outage_makes_it_ask_without_pause([AWAY] * 9, 0.1),
    ),
}


@pytest.mark.parametrize("rule", BROKEN_RULES)
def test_a_broken_rule_of_watches_is_found(monkeypatch, rule):
    old, new, found_by = BROKEN_RULES[rule]
    mutation.replace(monkeypatch, registry_consul_watch, "follow", old, new)
    monkeypatch.setitem(globals(), "follow", registry_consul_watch.follow)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        found_by()
