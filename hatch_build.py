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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = Path("alignjax/engines/_cpu_kernels.so")
GPU_LIBRARY = Path("alignjax/engines/gpu/_gpu_kernels.so")
REQUIRED = "ALIGNJAX_REQUIRE_KERNELS"  # if set, what cannot be compiled stops the installation
WITHOUT = "ALIGNJAX_NO_KERNELS"  # if set, nothing is compiled: a wheel for any machine
ARCHITECTURES = "ALIGNJAX_CUDA_ARCHITECTURES"  # such as "80,90,100"; by default those of the cards
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
# The libraries that every Linux with glibc has, and the last versions of GCC's two that are on all
# those whose glibc is 2.N or newer (the numbers are those of auditwheel's policy).
EVERYWHERE = r"(libc|libm|libgcc_s|libstdc\+\+|libpthread|libdl|librt|ld-linux.*)\.so\.\d+"
CARRIED = {
    "GLIBCXX": [
        ((3, 4, 19), 17),
        ((3, 4, 22), 24),
        ((3, 4, 24), 27),
        ((3, 4, 28), 31),
        ((3, 4, 29), 34),
        ((3, 4, 30), 35),
        ((3, 4, 33), 39),
    ],
    "CXXABI": [
        ((1, 3, 7), 17),
        ((1, 3, 10), 24),
        ((1, 3, 11), 27),
        ((1, 3, 12), 31),
        ((1, 3, 13), 34),
        ((1, 3, 15), 39),
    ],
    "GCC": [((4, 8, 0), 17), ((7, 0, 0), 27), ((12, 0, 0), 35), ((14, 0, 0), 39)],
}
CUDA_FLAGS = ["-std=c++17", "-O3"]
SHARED = ("basics.h", "chain.h", "call.h", "kernel.h")  # what csrc/gpu includes
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
        return HEADERS if compilers() and not os.environ.get(WITHOUT) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile if there is something to compile with; say so if there is not."""
        root = Path(self.root)
        editable = version == "editable"
        made = []
        if self.make(LIBRARY, editable, fingerprint, compile_library):
            made.append(LIBRARY)
            # Without kernels for CPUs there are none for GPUs either: compiler or headers lack.
            if self.make(GPU_LIBRARY, editable, gpu_fingerprint, compile_gpu_library):
                made.append(GPU_LIBRARY)
            build_data["pure_python"] = False
            tag = platform_tag([root / library for library in made])
            build_data["tag"] = f"py3-none-{tag}"
            build_data["artifacts"] += map(str, made)

    def make(
        self,
        name: Path,
        editable: bool,
        digest: Callable[[Path], str],
        compile_: Callable[[Path, Path], None],
    ) -> bool:
        """Put a library into the tree; whether it could be."""
        sources, library = Path(self.root) / "csrc", Path(self.root) / name
        try:
            if os.environ.get(WITHOUT):
                raise Unwanted(f"${WITHOUT} is set")
            # A wheel may be for another machine than the tree's library was compiled on.
            if not editable or not is_fresh(sources, library, digest):
                compile_(sources, library)
        except (ImportError, OSError, RuntimeError) as error:
            if editable:
                library.unlink(missing_ok=True)  # one of other sources is worse than none
            if os.environ.get(REQUIRED) and not isinstance(error, Unwanted):
                raise
            self.app.display_warning(f"alignjax does without {name.name}: {error}")
            return False
        return True


class Unwanted(RuntimeError):
    """Nobody asked for this library, or nothing here could use it."""


def platform_tag(libraries: list[Path]) -> str:
    """The platform of a wheel with shared libraries that no Python ABI enters.

    On Linux it is computed from what they need: ``manylinux_2_N`` for the oldest glibc on whose
    machines they load, or ``linux``, which no index takes, where that is not known. So a wheel for
    old machines is built on an old image.
    """
    plain = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    if sys.platform == "linux":
        found = [oldest_glibc(needed_versions(library)) for library in libraries]
        if None in found:
            return plain
        return f"manylinux_2_{max(map(int, filter(None, found)))}_{plain.removeprefix('linux_')}"
    if sys.platform != "darwin":
        return plain
    machines = [*targets()]
    major, minor = macos_version(machines)
    return f"macosx_{major}_{minor}_{machines[0] if len(machines) == 1 else 'universal2'}"


def needed_versions(library: Path) -> set[str] | None:
    """The versions of symbols that a library wants of others, such as ``GLIBC_2.17``, by objdump.

    None if they cannot be told, or if it wants a library that not every machine has.
    """
    try:
        command = ["objdump", "-p", str(library)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    wanted = set(re.findall(r"^\s+NEEDED\s+(\S+)$", said, re.MULTILINE))
    if not all(re.fullmatch(EVERYWHERE, name) for name in wanted):
        return None
    return set(re.findall(r"^\s+0x\w+ 0x\w+ \d+ (\S+)$", said, re.MULTILINE))


def oldest_glibc(versions: set[str] | None) -> int | None:
    """``N`` of the oldest glibc 2.N on whose machines all these versions are, None if not known.

    At least 17, the oldest one that wheels are made for.
    """
    oldest = 17
    for version in versions if versions is not None else {""}:
        name, _, digits = version.partition("_")
        if not re.fullmatch(r"\d+(\.\d+)*", digits):
            return None  # such as GLIBC_ABI_DT_RELR
        number = tuple(map(int, digits.split(".")))
        if name == "GLIBC" and number[0] == 2:
            oldest = max(oldest, number[1])
            continue
        served = [glibc for last, glibc in CARRIED.get(name, []) if number <= last]
        if not served:
            return None
        oldest = max(oldest, min(served))
    return oldest


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
    return digest_of(repr((FLAGS, X86, OTHERS)), [*sources.glob("*.cc"), *sources.glob("*.h")])


def gpu_fingerprint(sources: Path) -> str:
    """The same for the kernels for GPUs, and for which architectures."""
    folder = sources / "gpu"
    flags = repr((FLAGS, CUDA_FLAGS, architectures()))
    return digest_of(flags, [*folder.iterdir(), *(sources / name for name in SHARED)])


def digest_of(flags: str, sources: list[Path]) -> str:
    """Of flags and of files, whatever their order."""
    digest = hashlib.sha256(flags.encode())
    for source in sorted(sources):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def is_fresh(sources: Path, library: Path, digest: Callable[[Path], str] = fingerprint) -> bool:
    """Whether the library is compiled from these sources."""
    return library.exists() and digest(sources).encode() in library.read_bytes()


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
        put(finished, library)


def put(finished: Path, library: Path) -> None:
    """Into place by a renaming: a process that has the old library open keeps it."""
    moved = library.with_suffix(f".{os.getpid()}")
    shutil.copyfile(finished, moved)
    moved.replace(library)


def headers_of_xla() -> list[str]:
    """The flags that find them."""
    import jaxlib

    return ["-isystem", str(Path(jaxlib.__file__).parent / "include")]


def compile_for(
    machine: str, sources: Path, folder: Path, compiler: list[str], extra: tuple[str, ...]
) -> Path:
    """The library for one kind of machine, in a folder for what comes of compiling."""
    headers = [*headers_of_xla(), f'-DALIGNJAX_SOURCES="{fingerprint(sources)}"']
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


def compile_gpu_library(sources: Path, library: Path) -> None:
    """Compile ``csrc/gpu`` for cards.

    Raises:
        Unwanted: if there is no CUDA compiler, or no card here and none named.
        RuntimeError: for an error in compiling.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise Unwanted("no nvcc, neither in $CUDA_HOME/bin, on the path, nor from a Python package")
    named = architectures()
    if not named:
        raise Unwanted(f"no card here to compile for, and ${ARCHITECTURES} names none")
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / library.name
        compile_for_cards(sources, finished, nvcc, named)
        put(finished, library)


def compile_for_cards(
    sources: Path, library: Path, nvcc: str, named: tuple[str, ...], extra: tuple[str, ...] = ()
) -> str:
    """The library for these architectures; later ones have the newest one's translated.

    Returns:
        What the CUDA compiler says, for example of registers with ``extra=("-Xptxas", "-v")``.
    """
    compiler, folder = find_compiler(), library.parent
    codes = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in named]
    codes.append(f"-gencode=arch=compute_{named[-1]},code=compute_{named[-1]}")
    host = ["-ccbin", compiler[0], "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    kernels, entry = str(folder / "launch.o"), str(folder / "ffi.o")
    gpu = sources / "gpu"
    command = [nvcc, *CUDA_FLAGS, *codes, *host, *extra]
    said = run([*command, "-c", str(gpu / "launch.cu"), "-o", kernels])
    digest = f'-DALIGNJAX_SOURCES="{gpu_fingerprint(sources)}"'
    given = [*headers_of_xla(), digest]
    run([*compiler, *FLAGS, *given, "-c", str(gpu / "ffi.cc"), "-o", entry])
    # CUDA's runtime is linked in: which one is installed, if any, does not matter.
    command = [nvcc, "-shared", "-cudart", "static", "-ccbin", compiler[0], kernels, entry]
    run([*command, "-o", str(library)])
    return said


def compile_emulation(sources: Path, library: Path) -> None:
    """Compile ``csrc/gpu`` for the host, for tests.

    Raises:
        ImportError: if there are no headers of XLA's.
        RuntimeError: if there is no compiler, or an error in compiling.
    """
    compiler, gpu = find_compiler(), sources / "gpu"
    flags = [*FLAGS, "-O1", *headers_of_xla(), "-DALIGNJAX_EMULATED", '-DALIGNJAX_SOURCES=""']
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / library.name
        files = [str(gpu / "emulated.cc"), str(gpu / "ffi.cc")]
        run([*compiler, *flags, "-shared", *files, "-o", str(finished)])
        put(finished, library)


def find_nvcc() -> str | None:
    """CUDA's compiler: of ``$CUDA_HOME``, on the path, or of NVIDIA's Python packages."""
    places = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in places:
        if (Path(place) / "bin" / "nvcc").exists():
            return str(Path(place) / "bin" / "nvcc")
    if found := shutil.which("nvcc"):
        return str(Path(found).resolve())
    for site in map(Path, sys.path):
        for found in sorted(site.glob("nvidia/*/bin/nvcc"), reverse=True):
            return str(found)
    return None


def architectures() -> tuple[str, ...]:
    """What to compile for, such as ``("80", "90")``: as told, or the cards that are here."""
    told = os.environ.get(ARCHITECTURES)
    if told is not None:
        return tuple(sorted(set(re.findall(r"\d+", told)), key=int))
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = {line.strip().replace(".", "") for line in said.splitlines()}
    return tuple(sorted((a for a in found if a.isdecimal() and int(a) >= 80), key=int))


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


def run(command: list[str]) -> str:
    """Run a compiler and return what it says; of errors it is in the exception."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in said if "error" in line]
        raise RuntimeError(f"{command[0]}: {(errors or said)[0]}")
    return done.stdout + done.stderr
