"""Cases at random through the compiled kernels, under sanitizers.

    python -m tests.fuzz_engine [--cases 2000] [--seed 0] [--keep sanitized.so]

compiles the kernels with ``-fsanitize=address,undefined``, starts itself again with the address
sanitizer's library, and compares cases that hypothesis draws with a loop in NumPy, some of them
with XLA too. Not a test of its own: it takes the better part of an hour. Where a sanitizer stops
it, the case at hand is told.

    python -m tests.fuzz_engine --threads

looks for data races instead: ``threads.cc`` runs the kernels on many threads without Python,
whose own threads the thread sanitizer cannot follow.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1", "-g1")
VARIABLE = "ALIGNJAX_SANITIZED"
WITH_XLA = 40  # one case of so many: it takes XLA a second to compile one


def start_again(library: Path, last: Path) -> int:
    """This program in a process that has the sanitizer from the beginning."""
    from hatch_build import find_compiler

    def path(name: str) -> str:
        command = [*find_compiler(), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    environment = {
        **os.environ,
        # The C++ library too: the sanitizer looks for its exceptions when it starts.
        "LD_PRELOAD": f"{path('libasan.so')} {path('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and JAX keep what they have to the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        VARIABLE: f"{library}{os.pathsep}{last}",
    }
    command = [sys.executable, "-m", "tests.fuzz_engine", *sys.argv[1:]]
    status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
    if status and last.exists():
        print(f"exit status {status}; the last case was {last.read_text()}", file=sys.stderr)
    return status


def hunt_races(folder: Path) -> int:
    """The kernels of the baseline, and a program that calls them, under the thread sanitizer."""
    import jaxlib

    from hatch_build import FLAGS, OTHERS, X86, find_compiler, run, targets

    sets = X86 if {"x86_64", "amd64"} & set(targets()) else OTHERS
    name, (size, tile, rows, _) = list(sets.items())[-1]
    defined = {"ISA": name, "BYTES": size, "TILE": tile, "ROWS": rows, "SOURCES": '""'}
    sources = [*sorted((ROOT / "csrc").glob("*.cc")), ROOT / "tests" / "threads.cc"]
    command = [
        *find_compiler(),
        *FLAGS,
        *("-fsanitize=thread", "-O1", "-g1"),
        *(f"-DALIGNJAX_{key}={value}" for key, value in defined.items()),
        *("-I", str(ROOT / "csrc"), "-isystem", str(Path(jaxlib.__file__).parent / "include")),
    ]
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    for source, out in zip(sources, objects, strict=True):
        run([*command, "-c", str(source), "-o", out])
    run([*command, *objects, "-o", str(folder / "threads")])
    return subprocess.run([str(folder / "threads")], check=False).returncode


def fuzz(library: Path, last: Path, count: int, seed: int) -> None:
    """``count`` cases; the first that is wrong ends it, after a search for a simpler one."""
    import hypothesis
    import jax

    jax.config.update("jax_enable_x64", True)

    from alignjax.engines import library as kernels
    from tests import chains

    kernels.FILE = library
    assert kernels.reason_for_absence() is None, kernels.reason_for_absence()
    print(f"instruction sets: {', '.join(kernels.instruction_sets())}", flush=True)
    worst = dict.fromkeys(chains.TOLERANCE, 0.0)
    seen = {"cases": 0, "diverging": 0, "by XLA too": 0}

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(chains.cases())
    def holds(case: chains.Case) -> None:
        last.write_text(repr(case))
        moved, taken = chains.by_kernels(case)
        found = chains.difference(case, (moved, taken))
        assert found < chains.TOLERANCE[case.dtype], found
        worst[case.dtype] = max(worst[case.dtype], float(found))
        seen["cases"] += 1
        seen["diverging"] += bool((taken.sum(1) < sum(case.segments)).any())
        if seen["cases"] % WITH_XLA == 0:
            # The reference passes the same test, freezing at the same steps.
            assert chains.difference(case, chains.by_xla(case)) < chains.TOLERANCE[case.dtype]
            seen["by XLA too"] += 1
        if seen["cases"] % 100 == 0:
            jax.clear_caches()
            print(f"{seen}; worst relative difference {worst}", flush=True)

    holds()
    print(f"done: {seen}; worst relative difference {worst}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", action="store_true", help="look for data races instead")
    parser.add_argument("--keep", type=Path, help="the compiled library: taken if there, kept")
    given = parser.parse_args()
    sanitized = os.environ.get(VARIABLE)
    if sanitized:
        library, last = map(Path, sanitized.split(os.pathsep))
        fuzz(library, last, given.cases, given.seed)
        return 0
    sys.path.insert(0, str(ROOT))
    from hatch_build import compile_library

    with tempfile.TemporaryDirectory() as folder:
        if given.threads:
            return hunt_races(Path(folder))
        library = (given.keep or Path(folder) / "sanitized.so").resolve()
        if not library.exists():
            compile_library(ROOT / "csrc", library, CHECKS)
        return start_again(library, Path(folder) / "case.txt")


if __name__ == "__main__":
    sys.exit(main())
