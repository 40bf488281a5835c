"""Compiles the kernels in csrc/ while the package is built, and does without where it cannot."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = Path("alignjax/engines/_cpu_kernels.so")
REQUIRED = "ALIGNJAX_REQUIRE_KERNELS"  # if set, what cannot be compiled stops the installation
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-Wno-psabi",
    "-pthread",
]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mprefer-vector-width=512"]
# name -> bytes a vector, tile of cells, tile of rows, flags. Only kernel.cc sees these flags, and
# nothing of it is called on a machine without these instructions.
X86 = {
    "avx512": (64, 4, 8, [*AVX512, "-mfma"]),
    "avx2": (32, 3, 4, ["-mavx2", "-mfma"]),
    "sse2": (16, 3, 4, []),
}
OTHERS = {"generic": (16, 4, 8, [])}


class CompiledKernels(BuildHookInterface):
    """Adds the shared library to a wheel, or puts it into the tree of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile if there is something to compile with; say so if there is not."""
        root = Path(self.root)
        library = root / LIBRARY
        sources = [*(root / "csrc").glob("*"), root / "hatch_build.py"]
        newest = max(source.stat().st_mtime for source in sources)
        # A wheel may be for another machine than the tree's library was compiled on.
        fresh = library.exists() and library.stat().st_mtime >= newest
        if not fresh or version != "editable":
            try:
                library.unlink(missing_ok=True)
                compile_library(root / "csrc", library)
            except (ImportError, OSError, RuntimeError) as error:
                if os.environ.get(REQUIRED):
                    raise
                self.app.display_warning(f"alignjax does without compiled kernels: {error}")
        if library.exists():
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"
            build_data["artifacts"].append(str(LIBRARY))


def platform_tag() -> str:
    """The platform of a wheel with a shared library that no Python ABI enters."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def compile_library(sources: Path, library: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile ``csrc/`` into a shared library.

    Args:
        sources: the folder ``csrc``.
        library: what to write.
        extra: further flags for compiler and linker, such as ``-fsanitize=address``.

    Raises:
        RuntimeError: if there is no compiler, no header of XLA's, or an error in compiling.
    """
    import jaxlib

    compiler = find_compiler()
    include = Path(jaxlib.__file__).parent / "include"
    sets = X86 if platform.machine().lower() in ("x86_64", "amd64") else OTHERS
    with tempfile.TemporaryDirectory() as folder:

        def translate(name: str, source: str, flags: list[str]) -> str:
            out = str(Path(folder) / f"{name}.o")
            run([*compiler, *FLAGS, *flags, *extra, "-c", str(sources / source), "-o", out])
            return out

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [
                pool.submit(
                    translate,
                    name,
                    "kernel.cc",
                    [
                        *flags,
                        f"-DALIGNJAX_ISA={name}",
                        f"-DALIGNJAX_BYTES={size}",
                        f"-DALIGNJAX_TILE={tile}",
                        f"-DALIGNJAX_ROWS={rows}",
                    ],
                )
                for name, (size, tile, rows, flags) in sets.items()
            ]
            objects.append(pool.submit(translate, "ffi", "ffi.cc", ["-isystem", str(include)]))
            linked = [future.result() for future in objects]
        # Renamed into place: a process that has the old library open keeps it.
        unfinished = Path(folder) / library.name
        run([*compiler, "-shared", "-pthread", *extra, *linked, "-o", str(unfinished)])
        moved = library.with_suffix(".new")
        shutil.copyfile(unfinished, moved)
        moved.replace(library)


def find_compiler() -> list[str]:
    """``$CXX``, or the first of the usual names that exists."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise RuntimeError("no C++ compiler: neither $CXX nor c++, g++, clang++")


def run(command: list[str]) -> None:
    """Run a compiler; what it says is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{command[0]}: {said[0]}")
