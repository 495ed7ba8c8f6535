"""Makes a failing run small: fewer kinds of faults, users, actions, seconds, as long as it fails alike.

After A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), and greedy: what it ends with can't
be made smaller by one more step of its own, which does not mean that nothing smaller fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from chassis.testing.faults import RATES
from parley_simulation.plan import Plan

TRIES_MAX = 150  # of a fifth of a second each: what a person waits for after a violation was announced


class _EnoughError(Exception):
    """The tries are used up."""


def shrink(plan: Plan, fails: Callable[[Plan], bool], tries: int = TRIES_MAX) -> Plan:
    """Return the smallest plan found that fails, after at most so many tries. `fails(plan)` is taken for granted."""
    left = tries
    best = plan

    def still_fails(candidate: Plan) -> bool:
        nonlocal left, best
        if not left:
            raise _EnoughError
        left -= 1
        if not fails(candidate):
            return False
        best = candidate
        return True

    try:
        while True:
            before = best
            _drop_faults(before, still_fails)
            while any(still_fails(candidate) for candidate in best.smaller()):
                pass
            if best == before:
                return best
    except _EnoughError:
        return best


def _drop_faults(plan: Plan, still_fails: Callable[[Plan], bool]) -> None:
    """Take away kinds of faults, first many at once, then one by one."""
    kinds: Sequence[str] = [kind for kind in RATES if kind not in plan.without]
    size = len(kinds)
    while size:
        index = 0
        while index < len(kinds):
            candidate = replace(plan, without=plan.without | {*kinds[index : index + size]})
            if still_fails(candidate):
                plan, kinds = candidate, [*kinds[:index], *kinds[index + size :]]
            else:
                index += size
        size //= 2
