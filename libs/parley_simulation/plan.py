"""What one run is: a seed and what may happen in it. Equal plans give equal runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from chassis.testing.faults import RATES


class Scene(StrEnum):
    """What is simulated."""

    SYSTEM = "system"  # stores, router, gateways, and devices that use the SDK
    STORE = "store"  # stores alone, fed with records


NO_FAULTS = "none"
USERS_MAX = 4  # alice, bob, carol, dave
ACTIONS = 12  # a device: with some 8 devices a hundred records, enough to meet most faults, few enough for many seeds
SECONDS = 150  # of faults: most devices are done by then; those that were in a tunnel finish in peace


@dataclass(frozen=True)
class Plan:
    """A run. The seed draws the rest: who does what when, and how much of each fault strikes."""

    scene: Scene
    seed: int
    without: frozenset[str] = frozenset()  # kinds of faults that never strike
    users: int = 3
    actions: int = ACTIONS
    seconds: int = SECONDS

    @classmethod
    def of(cls, scene: Scene, seed: int) -> Self:
        """Return the plan that a seed has unless something is taken away."""
        return cls(scene, seed, users=3 if scene is Scene.SYSTEM else USERS_MAX)

    @property
    def rates(self) -> Mapping[str, float]:
        """The chances of faults. Those that are off stay in the table: what the others draw must not change."""
        return {kind: 0.0 if kind in self.without else rate for kind, rate in RATES.items()}

    def command(self) -> str:
        """Return the command that repeats the run."""
        whole = Plan.of(self.scene, self.seed)
        parts = ["parley simulate", f"--world {self.scene.value}", f"--seed {self.seed}"]
        if self.without != whole.without:
            parts.append(f"--faults '{','.join(kind for kind in RATES if kind not in self.without) or NO_FAULTS}'")
        sizes = ("users", "actions", "seconds")
        parts += [f"--{name} {getattr(self, name)}" for name in sizes if getattr(self, name) != getattr(whole, name)]
        return " ".join(parts)

    def with_less(self, less: Mapping[str, Any]) -> "Plan":
        """Return the plan with some of its fields set."""
        return replace(self, **less)

    def smaller(self) -> Iterator["Plan"]:
        """Yield plans with less of everything but faults, the boldest first."""
        for name, least in (("users", 2), ("actions", 1), ("seconds", 5)):
            value = getattr(self, name)
            for less in sorted({least, (least + value) // 2, value - 1}):
                if least <= less < value:
                    yield replace(self, **{name: less})
