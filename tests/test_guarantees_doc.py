"""The documents name tests, broken rules and files that exist."""

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()
DOCUMENTS = sorted(path for path in (ROOT / "docs").rglob("*.md"))
BASES = (ROOT, ROOT / "libs")  # what is imported by its name may be named so
NODE = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)")
SUFFIXES = ("py", "md", "proto", "toml", "sh", "lock", "binpb")
FILE = re.compile(rf"`([\w.*{{}},-]+(?:/[\w.*{{}},-]+)+\.(?:{'|'.join(SUFFIXES)}))[`:]")
BARE = re.compile(r"`([\w*]+\.py)`")  # where the folder is clear from what stands before
LINK = re.compile(r"\]\(([^)#:\s]+)[^)]*\)")


def definitions(path: Path) -> set[str]:
    """Return the functions, classes and assigned names of a test file, methods as Class::method."""
    found: set[str] = set()
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {node.name} | {f"{node.name}::{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def strings(folder: str) -> set[str]:
    """Return every string that the tests of a folder hold."""
    nodes = (node for path in sorted((ROOT / folder).glob("*.py")) for node in ast.walk(ast.parse(path.read_bytes())))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def expanded(name: str) -> Iterator[str]:
    """Yield `a/{b,c}.py` as a/b.py and a/c.py."""
    parts = [part.strip("{}").split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*\})", name)]
    return map("".join, product(*parts))


def is_there(name: str) -> bool:
    return all(any(any(base.glob(one)) for base in BASES) for one in expanded(name))


def test_every_guarantee_has_its_section():
    assert re.findall(r"^## G(\d+) ", GUARANTEES, re.MULTILINE) == [str(number) for number in range(1, 23)]


def test_every_section_says_what_holds_it_or_that_it_is_not_there_yet():
    for section in re.split(r"^## ", GUARANTEES, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        if re.match(r"G\d+ ", title) and "not there yet" not in title:
            assert re.search(r"^- held by: ", section, re.MULTILINE), title
            assert NODE.search(section) or "the simulation" in section, title


NOT_SIMULATED = {13, 15, 16}  # presence, Consul and push: their own tests hold them


def test_every_guarantee_names_what_breaks_it():
    """A mutation that `make mutants` runs, or a test that plants a bug: else nobody knows whether its tests can fail."""
    for section in re.split(r"^## ", GUARANTEES, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        number = re.match(r"G(\d+) ", title)
        if number is not None and int(number[1]) not in NOT_SIMULATED and "not there yet" not in title:
            lines = re.findall(r"^- broken by: (.*(?:\n  .*)*)", section, re.MULTILINE)
            assert re.search(r'"[^"]+"', " ".join(lines)) or any(NODE.search(line) for line in lines), title


@pytest.mark.parametrize("path", sorted({path for path, _ in NODE.findall(GUARANTEES)}))
def test_every_test_that_is_named_exists(path):
    named = {name for file, name in NODE.findall(GUARANTEES) if file == path}
    assert named <= definitions(ROOT / path), named - definitions(ROOT / path)
    assert all(name.rpartition("::")[2].startswith(("test_", "Test")) for name in named)


def test_every_broken_rule_that_is_named_exists():
    lines = re.findall(r"^- broken by: (.*(?:\n  .*)*)", GUARANTEES, re.MULTILINE)
    named = {" ".join(name.split()) for line in lines for name in re.findall(r'"([^"]+)"', line)}
    assert len(named) > 20
    known = strings("tests/simulation") | strings("libs/parley_simulation")
    assert named <= known, named - known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_is_there(document):
    text = document.read_text()
    assert {name for name in FILE.findall(text) if not is_there(name)} == set()
    ours = [ROOT / folder for folder in ("libs", "services", "tests")]
    assert {name for name in BARE.findall(text) if not any(any(folder.rglob(name)) for folder in ours)} == set()
    assert {link for link in LINK.findall(text) if not (document.parent / link).exists()} == set()
