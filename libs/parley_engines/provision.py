"""Engines fetched, checked and kept in the user's cache folder: once for all checkouts that have the same recipe."""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parley_engines.errors import EngineError

RECIPES: Final = Path(__file__).parent / "recipes"
Tell = Callable[[str], None]  # one line about what is going on, for whoever waits


@dataclass(frozen=True)
class Recipe:
    """How an engine comes to be in a folder."""

    name: str
    version: str
    expectation: str  # what it costs, for whoever waits
    build: Callable[["Workshop"], None]  # fills Workshop.result; whatever else it makes in Workshop.scratch is deleted

    @property
    def folder(self) -> Path:
        """Where its files lie in this repository."""
        return RECIPES / self.name

    def digest(self) -> str:
        """Return what names this very recipe, on this kind of machine."""
        digest = hashlib.sha256(f"{self.version} {platform.system()} {platform.machine()}".encode())
        for file in sorted(self.folder.iterdir()):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Workshop:
    """Where a recipe is carried out."""

    recipe: Recipe
    result: Path
    scratch: Path
    environ: Mapping[str, str]
    tell: Tell


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Return `parley/engines` in $XDG_CACHE_HOME, else in ~/.cache (the XDG base directory convention)."""
    cache = environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if cache.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "parley" / "engines"


def provisioned(recipe: Recipe, cache: Path) -> Path | None:
    """Return the folder of what was provisioned, if it was."""
    folder = _place(recipe, cache)
    return folder if folder.is_dir() else None


def provision(recipe: Recipe, cache: Path, environ: Mapping[str, str], tell: Tell) -> Path:
    """Return the engine's folder, made now if it is not there yet. Two that do so at once wait for each other.

    It appears under its name only when it is complete, by one rename; what an interruption left is deleted first.
    Raises EngineError.
    """
    folder = _place(recipe, cache)
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{folder.name}.lock", lambda: tell(f"{recipe.name}: another process provisions it, waiting")):
            if folder.is_dir():
                return folder
            for left in cache.glob(f"{folder.name}.partial*"):
                _remove(left)
            partial = cache / f"{folder.name}.partial-{os.getpid()}"
            workshop = Workshop(recipe, partial / "result", partial / "scratch", environ, tell)
            workshop.result.mkdir(parents=True)
            workshop.scratch.mkdir()
            tell(f"{recipe.name}: provisioning {recipe.version} into {folder} ({recipe.expectation})")
            try:
                recipe.build(workshop)
                workshop.result.rename(folder)
            finally:
                _remove(partial)
            tell(f"{recipe.name}: provisioned")
    except OSError as error:
        raise EngineError(f"{recipe.name}: can't provision it in {cache}: {error}") from error
    return folder


def check_sums(recipe: Recipe, folder: Path) -> None:
    """Compare what was fetched with the recipe's SHA256SUMS: these files, these bytes, no others. Raises EngineError."""
    lines = (recipe.folder / "SHA256SUMS").read_text().splitlines()
    expected = {name: digest for digest, name in (line.split() for line in lines)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise EngineError(f"{recipe.name}: not what the recipe says: {', '.join(wrong)}; nothing of it is used")


def _place(recipe: Recipe, cache: Path) -> Path:
    return cache / f"{recipe.name}-{recipe.version}-{recipe.digest()}"


def _remove(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)  # Go makes its module cache read-only
    shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a file's lock: it goes with the process that holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
