import importlib.util
import json
import sys
from pathlib import Path

import pytest

from chassis.compiled import FOLDER, MANIFEST, digest_of, serve_compiled, use_compiled, why_not, write_manifest

FOLDERS = ["libs", "services"]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources, and a folder that says to hold the compiled form of one of them."""
    for name in ("libs/made_up.py", "services/other.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("A = 1\n")
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    (folder / "made_up.so").touch()
    write_manifest(folder, tmp_path, FOLDERS, {"made_up": "made_up.so"}, digest_of(tmp_path, FOLDERS))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(tmp_path / "libs")
    return folder


def root_of(built: Path) -> Path:
    return built.parents[1]


def origin() -> str:
    spec = importlib.util.find_spec("made_up")
    assert spec is not None
    return Path(str(spec.origin)).name


def test_modules_of_these_very_sources_are_used(built):
    assert use_compiled(built, root_of(built)) == ""
    assert origin() == "made_up.so"
    assert importlib.util.find_spec("json") is json.__spec__


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "services" / "other.py").write_text("A = 2\n"),
        lambda root: (root / "libs" / "made_up.py").write_text("A = 1\n\n"),
        lambda root: (root / "libs" / "new.py").touch(),
        lambda root: (root / "libs" / "made_up.py").rename(root / "libs" / "renamed.py"),
        lambda root: (root / "services" / "other.py").unlink(),
    ],
)
def test_stale_ones_are_not_whatever_changed(built, change):
    change(root_of(built))
    assert "changed" in use_compiled(built, root_of(built))
    assert importlib.util.find_spec("made_up") is None or origin() == "made_up.py"


def test_nor_are_those_of_another_python(built):
    manifest = json.loads((built / MANIFEST).read_text())
    (built / MANIFEST).write_text(json.dumps(manifest | {"python": ".cpython-27.so"}))
    assert ".cpython-27.so" in use_compiled(built, root_of(built))
    assert origin() == "made_up.py"


def test_a_build_that_did_not_end_is_none(built):
    (built / MANIFEST).unlink()
    assert why_not(built, root_of(built)) == use_compiled(built, root_of(built)) == "nothing is compiled"


def test_the_two_forms_are_never_mixed(built, monkeypatch):
    monkeypatch.setitem(sys.modules, "made_up", json)
    with pytest.raises(RuntimeError, match="made_up"):
        use_compiled(built, root_of(built))


def test_a_server_says_why_it_runs_on_the_sources(built, monkeypatch, capsys):
    monkeypatch.setenv("PARLEY_COMPILED", "0")
    serve_compiled(root_of(built))
    assert origin() == "made_up.py"
    monkeypatch.delenv("PARLEY_COMPILED")
    (root_of(built) / "services" / "other.py").write_text("A = 2\n")
    serve_compiled(root_of(built))
    assert origin() == "made_up.py"
    said = capsys.readouterr().err
    assert "their sources have changed since: `make compiled`" in said
    assert said.count("\n") == 1
    serve_compiled(root_of(built) / "libs")  # where nothing is compiled, nothing is said
    assert capsys.readouterr().err == ""


def test_and_uses_what_is_fresh(built, monkeypatch, capsys):
    monkeypatch.delenv("PARLEY_COMPILED")
    serve_compiled(root_of(built))
    assert origin() == "made_up.so"
    assert capsys.readouterr().err == ""
