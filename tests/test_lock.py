"""The lock: what pyproject.toml asks for, all of it, pinned by hash, and from nowhere in particular."""

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
ENTRIES = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)((?: ;[^\n\\]*)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", LOCK, re.MULTILINE)
PINS = {canonicalize_name(name): version for name, version, _, _ in ENTRIES}
OTHER_PLATFORMS = {canonicalize_name(name) for name, _, marker, _ in ENTRIES if marker}


@pytest.fixture(scope="module")
def asked() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = project["project"]["dependencies"] + project["dependency-groups"]["dev"] + project["build-system"]["requires"]
    return [Requirement(line) for line in lines]


def test_every_line_is_a_pin_with_hashes_and_no_address():
    assert len(PINS) == len(ENTRIES) == len(re.findall(r"^\S", LOCK, re.MULTILINE))
    assert "://" not in LOCK
    assert not re.search(r"^-|@", LOCK, re.MULTILINE)


def test_the_lock_of_the_proofs_tools_names_no_address_and_agrees():
    """Its own file, so that `make run` installs none of it; what both hold is the same version."""
    lock = (ROOT / "requirements-proof.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^-|@", lock, re.MULTILINE)
    pins = {canonicalize_name(name): version for name, version in re.findall(r"^(\S+)==(\S+)", lock, re.MULTILINE)}
    assert {"atheris", "mutmut"} <= set(pins)
    assert {name: version for name, version in pins.items() if PINS.get(name, version) != version} == {}


def test_it_holds_what_the_project_asks_for(asked):
    """`make lock` mends it."""
    assert [str(each) for each in asked if not each.specifier.contains(PINS.get(canonicalize_name(each.name), "0"))] == []


def test_it_holds_what_that_needs_and_nothing_else(asked):
    """Follow the requirements of what is installed: `make lock` mends a difference here, too."""
    needed, waiting = set(), [(canonicalize_name(each.name), each.extras) for each in asked]
    while waiting:
        name, extras = waiting.pop()
        needed.add(name)
        for requirement in map(Requirement, distribution(name).requires or []):
            wanted = [requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in (extras or {""})]
            entry = (canonicalize_name(requirement.name), requirement.extras)
            if any(wanted) and entry[0] not in needed:
                waiting.append(entry)
    assert needed - set(PINS) == set()
    assert set(PINS) - needed - OTHER_PLATFORMS == set()


def test_what_is_installed_is_what_is_locked():
    """`make test` installs a changed lock by itself; this tells when something else did."""
    installed = {name: distribution(name).version for name in set(PINS) - OTHER_PLATFORMS}
    assert {name: version for name, version in installed.items() if version != PINS[name]} == {}
