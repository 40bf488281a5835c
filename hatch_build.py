"""Compiles the kernels in csrc/ while the package is built, and does without where it cannot."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = Path("alignjax/engines/_cpu_kernels.so")
REQUIRED = "ALIGNJAX_REQUIRE_KERNELS"  # if set, what cannot be compiled stops the installation
# XLA's headers. What is compiled against those of the oldest jaxlib loads in later ones too, but
# the oldest has no wheels for Pythons that came after it.
HEADERS = [
    "jaxlib>=0.7.2,<0.8; python_version < '3.15'",
    "jaxlib>=0.7.2; python_version >= '3.15'",
]
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

    def dependencies(self) -> list[str]:
        """What a build needs besides: nothing where there is no compiler."""
        return HEADERS if compilers() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile if there is something to compile with; say so if there is not."""
        root = Path(self.root)
        library = root / LIBRARY
        editable = version == "editable"
        try:
            # A wheel may be for another machine than the tree's library was compiled on.
            if not editable or not is_fresh(root / "csrc", library):
                compile_library(root / "csrc", library)
        except (ImportError, OSError, RuntimeError) as error:
            if editable:
                library.unlink(missing_ok=True)  # one of other sources is worse than none
            if os.environ.get(REQUIRED):
                raise
            self.app.display_warning(f"alignjax does without compiled kernels: {error}")
        else:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"
            build_data["artifacts"].append(str(LIBRARY))


def platform_tag() -> str:
    """The platform of a wheel with a shared library that no Python ABI enters."""
    if sys.platform != "darwin":
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    machines = [*targets()]
    major, minor = macos_version(machines)
    return f"macosx_{major}_{minor}_{machines[0] if len(machines) == 1 else 'universal2'}"


def targets() -> dict[str, list[str]]:
    """The machines to compile for, and the flags that say so.

    On macOS ``$ARCHFLAGS`` names them, as for every extension module; a Python for both kinds of
    machine does not mean that the library is for both.
    """
    if sys.platform != "darwin":
        return {sysconfig.get_platform().rpartition("-")[2].lower(): []}
    named = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))
    machines = sorted(set(named)) or [platform.machine()]
    version = "-mmacosx-version-min={}.{}".format(*macos_version(machines))
    return {machine: ["-arch", machine, version] for machine in machines}


def macos_version(machines: list[str]) -> tuple[int, int]:
    """The oldest macOS that the library is for: ``$MACOSX_DEPLOYMENT_TARGET``, or Python's own."""
    name = "MACOSX_DEPLOYMENT_TARGET"
    wanted = os.environ.get(name) or sysconfig.get_config_var(name) or "10.15"
    major, minor = (int(part) for part in f"{wanted}.0".split(".")[:2])
    # The first one for Arm, and the first one whose C++ library has all that is used.
    major, minor = max((major, minor), (11, 0) if machines == ["arm64"] else (10, 15))
    return (major, minor) if major == 10 else (major, 0)  # wheels know no minor versions since 11


def fingerprint(sources: Path) -> str:
    """What the library is compiled from, in short; it carries that of its own sources."""
    digest = hashlib.sha256(repr((FLAGS, X86, OTHERS)).encode())
    for source in sorted([*sources.glob("*.cc"), *sources.glob("*.h")]):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def is_fresh(sources: Path, library: Path) -> bool:
    """Whether the library is compiled from these sources."""
    return library.exists() and fingerprint(sources).encode() in library.read_bytes()


def compile_library(sources: Path, library: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile ``csrc/`` into a shared library.

    Args:
        sources: the folder ``csrc``.
        library: what to write.
        extra: further flags for compiler and linker, such as ``-fsanitize=address``.

    Raises:
        ImportError: if there are no headers of XLA's.
        RuntimeError: if there is no compiler, or an error in compiling.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        slices = []
        for machine, flags in targets().items():
            (Path(folder) / machine).mkdir()
            command = [*compiler, *flags]
            slices.append(compile_for(machine, sources, Path(folder) / machine, command, extra))
        finished = slices[0]
        if len(slices) > 1:
            finished = Path(folder) / library.name
            run(["lipo", "-create", *map(str, slices), "-output", str(finished)])
        # Renamed into place: a process that has the old library open keeps it.
        moved = library.with_suffix(f".{os.getpid()}")
        shutil.copyfile(finished, moved)
        moved.replace(library)


def compile_for(
    machine: str, sources: Path, folder: Path, compiler: list[str], extra: tuple[str, ...]
) -> Path:
    """The library for one kind of machine, in a folder for what comes of compiling."""
    import jaxlib

    headers = ["-isystem", str(Path(jaxlib.__file__).parent / "include")]
    headers.append(f'-DALIGNJAX_SOURCES="{fingerprint(sources)}"')
    sets = X86 if machine in ("x86_64", "amd64") else OTHERS

    def translate(name: str, source: str, flags: list[str]) -> str:
        out = str(folder / f"{name}.o")
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
        objects += [
            pool.submit(translate, name, f"{name}.cc", headers) for name in ("ffi", "recursion")
        ]
        linked = [future.result() for future in objects]
    library = folder / LIBRARY.name
    run([*compiler, "-shared", "-pthread", *extra, *linked, "-o", str(library)])
    return library


def compilers() -> list[list[str]]:
    """``$CXX``, or those of the usual names that exist."""
    if os.environ.get("CXX"):
        return [shlex.split(os.environ["CXX"])]
    return [[name] for name in ("c++", "g++", "clang++") if shutil.which(name)]


def find_compiler() -> list[str]:
    """The first of :func:`compilers`."""
    found = compilers()
    if not found:
        raise RuntimeError("no C++ compiler: neither $CXX nor c++, g++, clang++")
    return found[0]


def run(command: list[str]) -> None:
    """Run a compiler; what it says is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in said if "error" in line]
        raise RuntimeError(f"{command[0]}: {(errors or said)[0]}")
