"""The limit: a page of plain C for this one job, compiled here for one width and one dtype."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.job import Job, NotMeasured
from benchmarks.timing import Contender, uncompiled, usable_cores

__all__ = ["C_KERNEL", "train_in_c"]

C_KERNEL = "plain C: a kernel for this job alone"
SOURCE = Path(__file__).with_name("c_kernel.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-pthread")


def train_in_c(job: Job, steps: int) -> Contender:
    """The descent in C on all cores that this process may use."""
    start = time.perf_counter()
    compiler = _compiler()
    library = _compile(compiler, job.width, job.target.dtype)
    seconds = time.perf_counter() - start
    threads = usable_cores()

    def call() -> list[np.ndarray]:
        weights = [w.copy() for w in job.starts]
        failed = library.train(
            *map(_pointer, (job.target, *weights, job.rates)),
            *map(ctypes.c_long, (job.batch, steps, threads)),
        )
        if failed:
            raise MemoryError("the C kernel found no memory or no thread")
        return weights

    note = f"{threads} threads; {_version(compiler)}"
    return uncompiled(C_KERNEL, call, steps=steps, note=note, compile_seconds=seconds)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise NotMeasured("there is no C compiler")
    return compiler


def _version(compiler: str) -> str:
    says = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True)
    return says.stdout.partition("\n")[0]


def _compile(compiler: str, width: int, dtype: np.dtype) -> ctypes.CDLL:
    real = {"float32": "float", "float64": "double"}[dtype.name]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        names = (f"-DWIDTH={width}", f"-DREAL={real}")
        try:
            subprocess.run(
                [compiler, *FLAGS, *names, str(SOURCE), "-o", str(library)],
                check=True,
                capture_output=True,
                text=True,
            )
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().partition("\n")[0]
            raise NotMeasured(f"the C compiler failed: {reason}") from error
        # a loaded library stays when its file goes
        return ctypes.CDLL(str(library))
