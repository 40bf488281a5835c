"""Cases at random through the compiled kernels, under sanitizers.

    python -m tests.fuzz_engine [--cases 2000] [--seed 0] [--only recursion] [--keep sanitized.so]

compiles the kernels with ``-fsanitize=address,undefined``, starts itself again with the address
sanitizer's library, and compares cases that hypothesis draws with a loop in NumPy, some of them
with XLA too: so many networks (``chains.py``), then so many of the recursion in singular values
(``modes.py``), or only one of the two. Where a sanitizer stops it, the case at hand is told.

Not a test of its own: it takes 3 minutes of processor time to compile, 0.8 s a case of networks
and 0.4 s one of the recursion, three quarters of an hour in all.

    python -m tests.fuzz_engine --threads

looks for data races instead: ``threads.cc`` runs the kernels on many threads without Python,
whose own threads the thread sanitizer cannot follow. It takes 25 s.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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


def check_network(case: Any, xla: bool) -> dict[str, int]:
    """A case of :mod:`tests.chains`; what to count of it."""
    from tests import chains

    moved, taken = chains.by_kernels(case)
    assert chains.difference(case, (moved, taken)) < chains.TOLERANCE[case.dtype]
    if xla:  # the reference passes the same test, freezing at the same steps
        assert chains.difference(case, chains.by_xla(case)) < chains.TOLERANCE[case.dtype]
    if case.layout == "best":  # how networks lie changes no bit
        for layout in ("lanes", "columns"):
            others, steps = chains.by_kernels(replace(case, layout=layout))
            for found, other in zip((*moved, taken), (*others, steps), strict=True):
                np.testing.assert_array_equal(found, other)
    return {"runs": len(taken), "diverging": int((taken.sum(1) < sum(case.segments)).sum())}


def fuzz(last: Path, count: int, seed: int, only: str | None) -> None:
    """``count`` cases of each; the first wrong one ends it, after a search for a simpler one."""
    import hypothesis
    import jax

    from tests import chains, modes

    def hunt(what: str, strategy: Any, check: Callable[[Any, bool], dict[str, int]]) -> None:
        seen: Counter[str] = Counter()
        began = time.process_time()

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def holds(case: Any) -> None:
            last.write_text(repr(case))
            xla = (seen["cases"] + 1) % WITH_XLA == 0
            seen.update(check(case, xla) | {"cases": 1, "by XLA too": xla})
            if seen["cases"] % 100 == 0:
                jax.clear_caches()
                print(f"{what}: {dict(seen)}", flush=True)

        holds()
        spent = time.process_time() - began
        print(f"{what}, done in {spent:.0f} s of processor time: {dict(seen)}", flush=True)

    if only != "recursion":
        hunt("networks", chains.cases(widest=130), check_network)
    if only != "networks":
        hunt("recursion", modes.cases(), modes.check)


def use(file: Path) -> None:
    """Makes the sanitized kernels those of the package."""
    import jax

    jax.config.update("jax_enable_x64", True)

    from alignjax.engines import library

    library.FILE = file
    assert library.reason_for_absence() is None, library.reason_for_absence()
    print(f"instruction sets: {', '.join(library.instruction_sets())}", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["networks", "recursion"], help="cases of one kind")
    parser.add_argument("--threads", action="store_true", help="look for data races instead")
    parser.add_argument("--keep", type=Path, help="the compiled library: taken if there, kept")
    given = parser.parse_args()
    sanitized = os.environ.get(VARIABLE)
    if sanitized:
        library, last = map(Path, sanitized.split(os.pathsep))
        use(library)
        fuzz(last, given.cases, given.seed, given.only)
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
