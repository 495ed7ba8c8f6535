"""Provisioning: complete or not there, once for all who ask, and nothing that is not what the recipe says."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from parley_engines.engine import Engine
from parley_engines.errors import EngineError
from parley_engines.native import ENGINES
from parley_engines.provision import Recipe, Workshop, check_sums, default_cache_dir, provision, provisioned
from parley_engines.tools import GO, JAVA, MAVEN, check_tools, run_tool

KAFKA = ENGINES["kafka"].recipe


def build(workshop: Workshop) -> None:
    (workshop.result / "it").write_text("built")
    (workshop.scratch / "rest").mkdir(mode=0o500)  # read-only, as Go leaves its modules


def test_what_was_built_is_there_the_rest_is_gone_and_it_is_built_once(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = replace(KAFKA, build=build)
    assert provisioned(recipe, tmp_path) is None
    folder = provision(recipe, tmp_path, {}, said.append)
    assert folder == provisioned(recipe, tmp_path)
    assert (folder / "it").read_text() == "built"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]
    assert any("provisioning 4.1.1" in line for line in said)
    told = len(said)
    assert provision(recipe, tmp_path, {}, said.append) == folder
    assert len(said) == told


def test_an_interrupted_one_leaves_nothing_that_counts_and_the_next_starts_clean(tmp_path: Path) -> None:
    def killed(workshop: Workshop) -> None:
        build(workshop)
        raise KeyboardInterrupt

    recipe = replace(KAFKA, build=killed)
    with pytest.raises(KeyboardInterrupt):
        provision(recipe, tmp_path, {}, print)
    assert provisioned(recipe, tmp_path) is None
    left = tmp_path / f"kafka-4.1.1-{recipe.digest()}.partial-1"  # a SIGKILL leaves this
    (left / "result").mkdir(parents=True)
    (left / "result" / "half").touch()
    folder = provision(replace(KAFKA, build=build), tmp_path, {}, print)
    assert [path.name for path in folder.iterdir()] == ["it"]
    assert not left.exists()


def test_two_at_once_build_once(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()
    builds, said = [], []

    def slow(workshop: Workshop) -> None:
        builds.append(workshop)
        began.set()
        assert go_on.wait(10)
        build(workshop)

    def tell(line: str) -> None:
        said.append(line)
        if "another process" in line:
            go_on.set()

    recipe = replace(KAFKA, build=slow)
    threads = [threading.Thread(target=provision, args=(recipe, tmp_path, {}, tell)) for _ in range(2)]
    threads[0].start()
    assert began.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert len(builds) == 1
    assert any("another process provisions it" in line for line in said)


def test_another_recipe_has_another_place(tmp_path: Path) -> None:
    digests = {engine.recipe.digest() for engine in ENGINES.values()} | {replace(KAFKA, version="4.2").digest()}
    assert len(digests) == 4


@pytest.mark.parametrize("tamper", ["changed", "missing", "added"])
def test_files_that_are_not_what_the_recipe_says_are_refused(tmp_path: Path, tamper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipes = tmp_path / "jars", tmp_path / "recipes"
    (recipes / "kafka").mkdir(parents=True)
    folder.mkdir()
    names = ["a.jar", "b.jar"]
    (recipes / "kafka" / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n" for name in names)
    )
    for name in names:
        (folder / name).write_text(name)
    monkeypatch.setattr("parley_engines.provision.RECIPES", recipes)
    check_sums(KAFKA, folder)
    if tamper == "changed":
        (folder / "a.jar").write_text("another")
    elif tamper == "missing":
        (folder / "a.jar").unlink()
    else:
        (folder / "c.jar").touch()
    with pytest.raises(EngineError, match=r"[ac]\.jar"):
        check_sums(KAFKA, folder)


def test_the_cache_lies_where_the_user_says() -> None:
    assert default_cache_dir({"XDG_CACHE_HOME": "/cache", "HOME": "/elsewhere"}) == Path("/cache/parley/engines")
    assert default_cache_dir({"XDG_CACHE_HOME": "relative", "HOME": "/elsewhere"}) == Path("/elsewhere/.cache/parley/engines")


def program(folder: Path, name: str, says: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{says}'\n")
    file.chmod(0o700)


def test_all_that_is_missing_is_named_at_once_with_what_to_install(tmp_path: Path) -> None:
    program(tmp_path, "java", 'openjdk version "11.0.2" 2019-01-15')
    program(tmp_path, "go", "go version go1.26.8 linux/amd64")
    with pytest.raises(EngineError) as caught:
        check_tools([JAVA, MAVEN, GO], {"PATH": str(tmp_path)})
    said = str(caught.value)
    assert 'version "11' in said
    assert "install Java 17" in said
    assert "Maven is not there" in said
    assert "Go" not in said.replace("Go 1.21", "")
    program(tmp_path, "java", 'openjdk version "17.0.15" 2025-04-15')
    check_tools([JAVA, GO], {"PATH": str(tmp_path)})


def test_a_tool_that_fails_says_why(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(EngineError, match=r"(?s)exit code 3.*no such thing"):
        run_tool(
            ["sh", "-c", "echo no such thing; exit 3"],
            folder=tmp_path,
            environ={"PATH": "/bin:/usr/bin"},
            progress=str,
            tell=said.append,
        )


def test_recipes_name_versions_and_check_all_that_they_fetch() -> None:
    engine: Engine
    for engine in ENGINES.values():
        recipe: Recipe = engine.recipe
        assert recipe.version in engine.title
        names = {path.name for path in recipe.folder.iterdir()}
        assert names in ({"pom.xml", "SHA256SUMS"}, {"go.mod", "go.sum"})
        assert any(recipe.version in path.read_text() for path in recipe.folder.iterdir() if path.name in ("pom.xml", "go.mod"))
