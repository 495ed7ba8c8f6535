"""Compile the modules that every message goes through with mypyc, into build/compiled: `make compiled`.

A tenth to a fifth less of the server's CPU a message (docs/performance.md). The sources stay the truth: nothing here
changes what the modules do, a server uses the compiled form only if it is of these very sources, and without a C compiler
everything runs on the sources.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "libs"), str(ROOT)]

from chassis.compiled import FOLDER as PLACE
from chassis.compiled import digest_of, why_not, write_manifest

FOLDER = ROOT / PLACE
# Whatever the compiler looks into: it takes over constants and the layout of classes.
SOURCES = ("libs/chassis", "libs/parley", "libs/parley_protocol", "services")
GROUP = "parley"
# Pure ones alone: mypyc's coroutines are cancelled somewhat differently, which the simulation noticed.
MODULES = {
    "libs": ("chassis.rate", "chassis.timeline_pending", "parley_protocol.frames", "parley_protocol.ids", "parley_protocol.limits"),
    "": (
        *("services.store." + name for name in ("actions", "decide", "encoding", "loaded", "membership")),
        *("services.store." + name for name in ("recent", "rows", "seen_keys", "state", "work")),
        *("services.gateway." + name for name in ("commands", "inbound", "records")),
    ),
}


def main() -> None:
    """Compile, unless what is there is fresh. Without a compiler say so, and leave nothing behind."""
    if not why_not(FOLDER, ROOT):
        return
    compiler = os.environ.get("CC", str(sysconfig.get_config_var("CC") or "cc")).split()[0]
    if shutil.which(compiler) is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        print(f"No C compiler ({compiler}) or no Python headers: Parley runs on its sources, somewhat slower.")
        return
    print(
        f"Compiling {sum(map(len, MODULES.values()))} modules (once for these sources, some 20 s; Parley runs without, too)",
        flush=True,
    )
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    digest = digest_of(ROOT, SOURCES)
    paths = [str(Path(folder, *name.split(".")).with_suffix(".py")) for folder, names in MODULES.items() for name in names]
    log = FOLDER / "log"
    with log.open("w") as output:
        command = [sys.executable, "-c", _BUILD, GROUP, str(FOLDER), *paths]
        environ = os.environ | {"MYPYPATH": "libs", "MYPY_CACHE_DIR": str(FOLDER / "mypy")}
        done = subprocess.run(command, cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        print("".join(f"  {line}\n" for line in log.read_text().splitlines()[-15:]), end="")
        raise SystemExit(f"The compiler failed, its whole output is in {log}. Parley runs on its sources.")
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    names = [f"{GROUP}__mypyc", *(name for names in MODULES.values() for name in names)]
    for spare in ("mypy", "tmp", "c"):
        shutil.rmtree(FOLDER / spare, ignore_errors=True)
    write_manifest(FOLDER, ROOT, SOURCES, {name: name.replace(".", "/") + suffix for name in names}, digest)


# In a process of its own: setuptools writes to wherever it stands, and to stdout.
_BUILD = """
import sys
from mypyc.build import mypycify
from setuptools import setup
group, folder, *paths = sys.argv[1:]
sys.argv[1:] = ["--quiet", "build_ext", "--build-lib", folder, "--build-temp", folder + "/tmp"]
# -O1: measured no slower than -O3, and done in two thirds of the time.
extensions = mypycify(
    ["--strict", "--explicit-package-bases", "--ignore-missing-imports", *paths],
    opt_level="1", debug_level="0", group_name=group, target_dir=folder + "/c",
)
setup(name=group, packages=[], py_modules=[], ext_modules=extensions)
"""

if __name__ == "__main__":
    main()
