"""Who may import whom, what stays pure, and what never stands in a file."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.compile import MODULES

ROOT = Path(__file__).parent.parent
NOT_OURS = {".git", ".venv", "build", "data", "__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
GENERATED = ROOT / "libs" / "parley"
NOT_WRITTEN = {"requirements.lock", "LICENSE", "released.binpb"}  # made by tools or by others

# What a package may import of ours, besides itself. Everybody may import libraries, parley_protocol hardly any.
MAY_IMPORT = {
    "chassis": set(),
    "parley_protocol": set(),
    "parley_checker": {"parley", "parley_protocol"},
    "parley_client": {"chassis", "parley", "parley_protocol", "parley_checker"},
    "parley_engines": set(),
    "parley_chaos": {
        "chassis",
        "parley",
        "parley_checker",
        "parley_client",
        "parley_cluster",
        "parley_engines",
        "parley_protocol",
        "services.gateway",
        "services.router",
        "services.store",
    },
    "parley_cluster": {"chassis", "parley_engines", "parley_protocol", "services.gateway"},
    "services.gateway": {"chassis", "parley", "parley_protocol"},
    "services.router": {"chassis", "parley", "parley_protocol"},
    "services.store": {"chassis", "parley", "parley_protocol"},
    "parley_simulation": {
        "chassis",
        "parley",
        "parley_protocol",
        "parley_checker",
        "parley_client",
        "services.gateway",
        "services.router",
        "services.store",
    },
    "parley_cli": {
        "chassis",
        "parley",
        "parley_protocol",
        "parley_checker",
        "parley_client",
        "parley_chaos",
        "parley_cluster",
        "parley_engines",
        "parley_simulation",
        "services.gateway",
        "services.router",
        "services.store",
    },
}

# Pure: a function of its arguments. Time and randomness come in, nothing goes out.
PURE = [
    "libs/chassis/rate.py",
    "libs/chassis/timeline_cql_grouping.py",
    "libs/chassis/timeline_pending.py",
    "libs/parley_checker/*.py",
    "libs/parley_cli/chat_commands.py",
    "libs/parley_cli/rendering.py",
    "libs/parley_cli/ticks.py",
    "libs/parley_client/*_state.py",
    "libs/parley_client/reconnect.py",
    "libs/parley_client/timelines.py",
    "libs/parley_protocol/*.py",
    "services/gateway/commands.py",
    "services/gateway/goodbyes.py",
    "services/gateway/inbound.py",
    "services/gateway/records.py",
    "services/router/recipients.py",
    "services/store/actions.py",
    "services/store/decide.py",
    "services/store/encoding.py",
    "services/store/loaded.py",
    "services/store/membership.py",
    "services/store/page_tokens.py",
    "services/store/recent.py",
    "services/store/rows.py",
    "services/store/seen_keys.py",
    "services/store/state.py",
    "services/store/work.py",
]
IMPURE_MODULES = {"asyncio", "threading", "concurrent", "time", "secrets", "socket", "sqlite3", "subprocess", "os", "grpc.aio"}
IMPURE_NAMES = {"datetime.now", "datetime.today", "datetime.utcnow", "date.today", "grpc.aio", "uuid.uuid4", "uuid.uuid7"}

MAX_LINES = 400
LONGER_FOR_A_REASON: dict[str, str] = {  # path -> why it is one idea all the same
    "tests/mutation_run/examined.toml": "a table with an entry for each mutant, looked up and not read through"
}

# Written so that this file does not match itself.
FORBIDDEN = {
    "unfinished": re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b"),
    "a path of one machine": re.compile(r"(?<![\w.$}/~])/(home|root|tmp|Users|work|farm)" r"/\w"),
}


def files(*suffixes: str) -> Iterator[Path]:
    """Yield our own text files, generated code apart, in order."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name not in NOT_OURS and Path(folder, name) != GENERATED)
        for name in sorted(names):
            path = Path(folder, name)
            if name not in NOT_WRITTEN | NOT_OURS and (not suffixes or path.suffix in suffixes):
                yield path


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{named(path)}:{node.lineno}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def package_files(package: str) -> list[Path]:
    folder = ROOT.joinpath(*package.split(".")) if package.startswith("services.") else ROOT / "libs" / package
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_those_below_it(package):
    ours = {"chassis", "parley", "services", *MAY_IMPORT}
    allowed = MAY_IMPORT[package] | {package}
    paths = package_files(package)
    assert paths, f"{package} is listed here and has no files"
    wrong = {
        f"{named(path)}: {module}"
        for path in paths
        for module in imports(path)
        if within(module, ours) and not within(module, allowed)
    }
    # `from services.store import x` names services.store as well; the bare parent package holds nothing.
    assert not {entry for entry in wrong if not entry.endswith(": services")}


def test_every_package_has_its_place_in_the_table():
    present = {path.name for path in (ROOT / "libs").iterdir() if any(path.glob("*.py"))}
    present |= {f"services.{path.name}" for path in (ROOT / "services").iterdir() if any(path.glob("*.py"))}
    assert present <= set(MAY_IMPORT)


def test_parley_protocol_needs_no_library():
    """What clients in other languages copy rests on the standard library alone; slots are the servers' business."""
    paths = [path for path in package_files("parley_protocol") if path.name != "slots.py"]
    used = {module.split(".")[0] for path in paths for module in imports(path)}
    assert used - {"parley_protocol"} <= sys.stdlib_module_names


@pytest.mark.parametrize("pattern", PURE)
def test_a_pure_core_reaches_for_nothing(pattern):
    paths = sorted(ROOT.glob(pattern))
    assert paths, f"{pattern} is listed as pure and matches no file"
    for path in paths:
        modules = imports(path)
        names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Attribute)}
        # random.Random is the type of what is passed in; random's functions are everybody's.
        randomness = {name for name in modules | names if within(name, {"random"})} - {"random", "random.Random"}
        reached = {name for name in modules if within(name, IMPURE_MODULES)} | (modules | names) & IMPURE_NAMES
        assert not randomness | reached, named(path)


def test_only_pure_modules_are_compiled():
    """Those are the ones that behave alike: a compiled coroutine is cancelled differently."""
    pure = {path for pattern in PURE for path in ROOT.glob(pattern)}
    compiled = {ROOT.joinpath(folder, *name.split(".")).with_suffix(".py") for folder, names in MODULES.items() for name in names}
    assert compiled <= pure


def test_files_stay_readable_in_one_sitting():
    lengths = {named(path): path.read_bytes().count(b"\n") for path in files(".py", ".proto", ".md", ".sh", ".toml")}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES and name not in LONGER_FOR_A_REASON} == {}
    assert {name for name in LONGER_FOR_A_REASON if lengths.get(name, 0) <= MAX_LINES} == set(), "these need no exception"


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_says(what):
    found = []
    for path in files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # not text
            continue
        found += [
            f"{named(path)}:{number}: {line.strip()[:80]}" for number, line in enumerate(lines, 1) if FORBIDDEN[what].search(line)
        ]
    assert found == []


def test_packages_say_what_they_are():
    """A package's docstring tells what it owns, promises and never does."""
    for package in MAY_IMPORT:
        paths = [path for path in package_files(package) if path.name == "__init__.py"]
        assert paths, package
        for path in paths:
            assert ast.get_docstring(ast.parse(path.read_bytes())), f"{named(path)} has no docstring"
