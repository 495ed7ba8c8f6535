"""Fuzz entries with atheris, guided by coverage: `make fuzz SECONDS=60 ARGS="token keys_file"`.

Each target runs in a process of its own. What it finds is written to the corpus (build/fuzz/TARGET/crash-*): make a seed of it in
targets.py when it is mended.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import atheris

OURS = ("chassis", "parley_checker", "parley_client", "parley_protocol", "services")  # whose coverage guides
OPTIONS = ("-max_len=4096", "-timeout=20", "-rss_limit_mb=2048", "-verbosity=0", "-print_final_stats=1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=int)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("targets", nargs="*", help="all, if none is named")
    parser.add_argument("--here", action="store_true", help="in this process; one target")
    arguments = parser.parse_args()
    if arguments.here:
        fuzz(arguments.targets[0], arguments.seconds, arguments.corpus)
    from tests.fuzz.targets import targets

    if unknown := set(arguments.targets) - set(targets):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(targets)}")
    found = []
    for name in arguments.targets or targets:
        sys.stdout.write(f"{name}: {arguments.seconds} s\n")
        sys.stdout.flush()
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.coverage_guided",
            "--here",
            str(arguments.seconds),
            str(arguments.corpus),
            name,
        ]
        if subprocess.run(command, check=False).returncode:
            found.append(name)
    sys.stdout.write(f"found something in: {', '.join(found)}\n" if found else "nothing found\n")
    return bool(found)


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target until the time is over or something is found, then end the process."""
    with atheris.instrument_imports(include=list(OURS)):
        from tests.fuzz.targets import silence, targets
    silence()
    place = corpus / name
    place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets[name].seeds):
        (place / f"seed-{number}").write_bytes(seed)
    atheris.Setup([name, *OPTIONS, f"-max_total_time={seconds}", f"-artifact_prefix={place}/", str(place)], targets[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
