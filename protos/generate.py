"""Turn protos/ into code and descriptors: `python protos/generate.py code | check | descriptors FILE | release`.

`code` writes libs/parley and removes what has no proto any more; `check` fails where that would change anything; `descriptors`
writes what buf lints, comments included; `release` writes what later versions must stay compatible with. The output depends on
the protos and on the locked generators alone.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.rpc import status_pb2

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
LIBS = ROOT / "libs"
RELEASED = PROTOS / "released.binpb"
SITE_PACKAGES = Path(status_pb2.__file__).parents[2]  # google/rpc/*.proto lie beside their generated code


def protoc(*options: str, sources: list[str]) -> None:
    """Run protoc over sources, with the plugins of this interpreter's environment; a warning (an unused import) is an error."""
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", "--fatal_warnings", f"-I{PROTOS}", f"-I{SITE_PACKAGES}"]
    subprocess.run([*command, *options, *sources], env=environ, check=True)


def sources() -> list[str]:
    """Return all protos, sorted, as their imports name them."""
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


def generate(out: Path) -> None:
    """Write the code below out: messages for all protos, asyncio stubs for those that define a service."""
    protoc(f"--python_out={out}", f"--mypy_out=quiet:{out}", sources=sources())
    services = [source for source in sources() if source.endswith("_service.proto")]
    protoc(f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet,only_async:{out}", sources=services)


def describe(file: Path, *, comments: bool) -> None:
    """Write the descriptor set of all protos with everything they import."""
    file.parent.mkdir(parents=True, exist_ok=True)
    source_info = ["--include_source_info"] if comments else []
    protoc("--include_imports", *source_info, f"--descriptor_set_out={file}", sources=sources())


def differing(fresh: Path) -> list[Path]:
    """Return the files of libs/parley that are missing, stale or left over, compared with what was generated below fresh."""
    wanted = {path.relative_to(fresh) for path in fresh.rglob("*_pb2*")}
    present = {path.relative_to(LIBS) for path in (LIBS / "parley").rglob("*_pb2*") if path.suffix in (".py", ".pyi")}
    changed = {path for path in wanted & present if not filecmp.cmp(fresh / path, LIBS / path, shallow=False)}
    return sorted(wanted ^ present | changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["code", "check", "descriptors", "release"])
    parser.add_argument("file", nargs="?", type=Path)
    arguments = parser.parse_args()
    match arguments.what:
        case "descriptors" if arguments.file:
            describe(arguments.file, comments=True)
            return 0
        case "descriptors":
            parser.error("descriptors needs a file to write")
        case "release":
            describe(RELEASED, comments=False)
            return 0
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        generate(fresh)
        stale = differing(fresh)
        if arguments.what == "check":
            for path in stale:
                print(f"libs/{path}: not what protos/ generates; run `make proto` and commit", file=sys.stderr)
            return 1 if stale else 0
        for path in stale:
            if (fresh / path).exists():
                (LIBS / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fresh / path, LIBS / path)
            else:
                (LIBS / path).unlink()
            print(f"libs/{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
