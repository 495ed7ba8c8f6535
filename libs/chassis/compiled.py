"""Modules compiled beforehand, in place of their sources: only where they are of these very sources.

A folder of extension modules with a manifest, which is written last. What it was made of is hashed: when anything differs by a
byte, or Python is another one, none of them is used. They are of one piece, so some of them would be worse than none.
"""

import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

FOLDER: Final = "build/compiled"  # below the root of the sources
MANIFEST: Final = "manifest.json"


def digest_of(root: Path, folders: Iterable[str]) -> str:
    """Hash all sources below some folders of a root, by name and content."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def write_manifest(folder: Path, root: Path, folders: Sequence[str], modules: Mapping[str, str], digest: str) -> None:
    """Declare a folder's extension modules (file by module) to be of the sources of that digest."""
    manifest = {"python": _python(), "folders": list(folders), "sources": digest, "modules": dict(modules)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def why_not(folder: Path, root: Path) -> str:
    """Tell why a folder's modules can't stand for the sources below root; empty: they can."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return "nothing is compiled"
    if manifest["python"] != _python():
        return f"they are for {manifest['python']}, this is {_python()}"
    if manifest["sources"] != digest_of(root, manifest["folders"]):
        return "their sources have changed since"
    return ""


def use_compiled(folder: Path, root: Path) -> str:
    """Import a folder's modules from it from now on, all of them; return why not, or nothing.

    Raises RuntimeError if one of them was imported from its source before.
    """
    reason = why_not(folder, root)
    if reason:
        return reason
    modules: dict[str, str] = json.loads((folder / MANIFEST).read_text())["modules"]
    early = sorted(modules.keys() & sys.modules.keys())
    if early:
        raise RuntimeError(f"imported before their compiled form was asked for: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder({name: folder / file for name, file in modules.items()}))
    return ""


def serve_compiled(root: Path) -> None:
    """Use what is compiled of the sources below root, if it is of these very ones; called first, by what serves.

    Says on stderr that it is stale; PARLEY_COMPILED=0 leaves it alone.
    """
    folder = root / FOLDER
    if os.environ.get("PARLEY_COMPILED") == "0" or not folder.exists():
        return
    if reason := use_compiled(folder, root):
        print(f"The compiled modules are not used, {reason}: `make compiled` renews them.", file=sys.stderr)  # noqa: T201


class _Finder:
    """Finds extension modules by their full names."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        file = self._files.get(name)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def _python() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))
