"""Shapes at random through the compiled kernels, under the address sanitizer.

    python -m tests.fuzz_engine [--cases 2000]

compiles the kernels with ``-fsanitize=address``, starts itself again with the sanitizer's library,
and compares each case, on each instruction set of this machine, with a loop in NumPy. Not a test
of its own: it takes minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLAGS = ("-fsanitize=address", "-O1", "-g1")


def compile_sanitized(library: Path) -> None:
    """The kernels with checks of every access to memory."""
    sys.path.insert(0, str(ROOT))
    from hatch_build import compile_library

    compile_library(ROOT / "csrc", library, FLAGS)


def start_again(library: Path, cases: int) -> int:
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
        "ALIGNJAX_SANITIZED": str(library),
    }
    command = [sys.executable, "-m", "tests.fuzz_engine", "--cases", str(cases)]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


def fuzz(library: Path, count: int) -> None:
    """``count`` cases; the first that is wrong ends it."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np

    from alignjax.engines import library as kernels
    from tests.chains import difference

    kernels.FILE = library
    assert kernels.reason_for_absence() is None, kernels.reason_for_absence()
    sets = kernels.instruction_sets()
    rng = np.random.default_rng(0)
    worst = {np.float64: 0.0, np.float32: 0.0}
    for index in range(count):
        kernels.select(sets[index % len(sets)])
        widths = tuple(int(k) for k in rng.integers(1, 40, rng.integers(2, 8)))
        if rng.random() < 0.3:  # square ones have code of their own
            widths = (int(rng.choice([2, 3, 4, 8, 9, 16])),) * len(widths)
        dtype = np.float64 if rng.random() < 0.5 else np.float32
        sizes = (int(rng.integers(1, 60)), int(rng.integers(1, 40)), int(rng.integers(0, 70)))
        case = (widths, *sizes, index, bool(rng.random() < 0.4), dtype)
        found = difference(case)
        assert found < (1e-10 if dtype == np.float64 else 2e-3), (found, case)
        worst[dtype] = max(worst[dtype], found)
        if index % 100 == 99:
            jax.clear_caches()
            print(f"{index + 1} cases; worst relative difference {worst}", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    cases = parser.parse_args().cases
    sanitized = os.environ.get("ALIGNJAX_SANITIZED")
    if sanitized:
        fuzz(Path(sanitized), cases)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "sanitized.so"
        compile_sanitized(library)
        return start_again(library, cases)


if __name__ == "__main__":
    sys.exit(main())
