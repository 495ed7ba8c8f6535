"""`make mutation-run`: make every small mistake there is in the pure cores, one at a time, and see that a test falls.

Prints a table and, with what was changed, each mutant that lives on. Fails if one is not in examined.toml, which says of each why
nobody could tell it from the right code, and if one is named there that fell or that there is no more.
"""

import argparse
import json
import os
import shutil
import sys
import time
import tomllib
from collections import Counter
from importlib import import_module
from pathlib import Path

from tests.mutation_run.forks import TEMPORARY, BaselineError, Fate, judge_module
from tests.mutation_run.mutants import Mutant, mutants_of
from tests.mutation_run.plan import TESTS

LAST = Path("build/mutation-run/survivors.json")  # by module, of its last run: for --again
EXAMINED = Path(__file__).with_name("examined.toml")
# Nothing of what is mutated is imported by these: all forks have them from the start.
OF_OTHERS = (
    "aiohttp",
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "google.rpc.status_pb2",
    "grpc.aio",
    "grpc_health.v1.health",
    "grpc_status.rpc_status",
    "hypothesis.stateful",
    "jwt",
    "prometheus_client",
    "pydantic_settings",
    "pytest_asyncio",
    "structlog",
    "xxhash",
)
Key = tuple[str, str, str]  # function, the lines before and after: stays when lines move


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="parts of paths: only these modules")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--in", dest="function", default="", help="only in functions of such a name")
    parser.add_argument("--again", action="store_true", help="only what lived on in the last run: for work on the tests")
    parser.add_argument("--all", action="store_true", help="show examined survivors as well")
    arguments = parser.parse_args()
    for name in OF_OTHERS:
        import_module(name)
    examined = {
        module: {(each["in"], each["was"], each["now"]): each["because"] for each in entries}
        for module, entries in tomllib.loads(EXAMINED.read_text()).items()
    }
    paths = [path for path in TESTS if not arguments.modules or any(part in path for part in arguments.modules)]
    head = f"{'module':<36}{'mutants':>8}{'killed':>8}{'timeout':>8}{'survived':>9}{'examined':>9}{'open':>6}{'seconds':>9}"
    lines, stories, total = [head], [], Counter[str]()
    failed = False
    for path in paths:
        started = time.monotonic()
        mutants = [each for each in mutants_of(Path(path).read_text()) if arguments.function in each.function]
        if arguments.again:
            mutants = [each for each in mutants if [*key(each)] in last_survivors().get(path, [])]
        try:
            fates = judge(path, mutants, arguments.jobs)
        except BaselineError as error:
            lines.append(f"{path:<36}  {error}")
            failed = True
            continue
        survivors = [mutant for mutant, fate in zip(mutants, fates, strict=True) if fate is Fate.SURVIVED]
        keep_survivors(path, survivors)
        reasons = examined.get(path, {})
        unexamined = [mutant for mutant in survivors if key(mutant) not in reasons]
        stale = set() if arguments.function or arguments.again else set(reasons) - set(map(key, survivors))
        stories += [story(path, mutant) for mutant in (survivors if arguments.all else unexamined)]
        stories += [
            f"{path}: {function}: in examined.toml, but killed or gone\n  - {was}\n  + {now}"
            for function, was, now in sorted(stale)
        ]
        failed |= bool(unexamined or stale)
        count = Counter(fate.value for fate in fates)
        lived, left = len(survivors), len(unexamined)
        numbers = (len(mutants), count["killed"], count["timeout"], lived, lived - left, left)
        total.update(dict(zip("abcdef", numbers, strict=True)))
        lines.append(row(path, numbers, time.monotonic() - started))
    lines.append(row("all", tuple(total[letter] for letter in "abcdef"), 0.0))
    sys.stdout.write("\n".join([*stories, "", *lines, ""]))
    return failed


def judge(path: str, mutants: list[Mutant], jobs: int) -> list[Fate]:
    """Judge one module's mutants, with a line on the terminal of how far it is."""
    counts = Counter[Fate]()
    step, terminal = max(1, len(mutants) // 10), os.fdopen(os.dup(2), "w")

    def tell(number: int, fate: Fate) -> None:
        counts[fate] += 1
        if fate is Fate.SURVIVED:  # seen while the rest goes on; judged at the end
            terminal.write(f"{story(path, mutants[number])}\n")
        if counts.total() % step == 0:
            told = ", ".join(f"{count} {kind.value}" for kind, count in counts.items())
            terminal.write(f"{path}: {counts.total()} of {len(mutants)}: {told}\n")
            terminal.flush()

    module = path.removeprefix("libs/").removesuffix(".py").replace("/", ".")
    try:
        return judge_module(module, Path(path).absolute(), TESTS[path], mutants, jobs, tell)
    finally:
        terminal.close()
        shutil.rmtree(TEMPORARY, ignore_errors=True)


def last_survivors() -> dict[str, list[list[str]]]:
    return json.loads(LAST.read_text()) if LAST.exists() else {}


def keep_survivors(path: str, survivors: list[Mutant]) -> None:
    LAST.parent.mkdir(parents=True, exist_ok=True)
    LAST.write_text(json.dumps(last_survivors() | {path: [key(mutant) for mutant in survivors]}))


def key(mutant: Mutant) -> Key:
    return mutant.function, mutant.was, mutant.now


def story(path: str, mutant: Mutant) -> str:
    return f"{path}:{mutant.line}: {mutant.function or 'module'}: survived\n  - {mutant.was}\n  + {mutant.now}"


def row(name: str, numbers: tuple[int, ...], seconds: float) -> str:
    widths = (8, 8, 8, 9, 9, 6)
    return f"{name:<36}" + "".join(f"{number:>{width}}" for number, width in zip(numbers, widths, strict=True)) + f"{seconds:>9.0f}"


if __name__ == "__main__":
    sys.exit(main())
