"""Programs with compiled kernels in them are exported, and run where alignjax is imported."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import alignjax as aj
from alignjax.engines import library
from tests import emulated

needs_kernels = pytest.mark.skipif(
    library.reason_for_absence() is not None, reason=str(library.reason_for_absence())
)
ROOT = Path(aj.__file__).parents[1]
RATES = np.array([0.1, 0.2])


PROBLEM = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
START = aj.initializers.identity((2, 2, 2), 0.5)
REDUCED = aj.reduce(PROBLEM, START)


def train(rates, engine="auto"):
    """Networks by one kernel, singular values by the other."""

    def one(rate):
        full = aj.gradient_descent(PROBLEM, START, rate, steps=9, engine=engine)
        short = aj.reduced_descent(REDUCED, rate, steps=9, engine=engine)
        return full.weights, short.weights

    return jax.vmap(one)(rates)


def kernels_in(exported):
    return [name for name in library.TARGETS if name in exported.mlir_module()]


@needs_kernels
def test_a_program_with_kernels_is_exported_by_one_word():
    run = jax.jit(train)
    with pytest.raises(ValueError, match="custom calls whose targets have no compatibility"):
        export.export(run)(RATES)
    exported = export.export(run, disabled_checks=aj.engines.export_checks())(RATES)
    assert kernels_in(exported) == list(library.TARGETS)
    for found, expected in zip(
        jax.tree.leaves(exported.call(RATES)), jax.tree.leaves(run(RATES)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_by_xla_alone_it_needs_no_word():
    exported = export.export(jax.jit(lambda rates: train(rates, "xla")))(RATES)
    assert kernels_in(exported) == []


@needs_kernels
def test_an_exported_program_runs_where_alignjax_is_only_imported(tmp_path):
    pytest.importorskip("flatbuffers")  # what JAX writes exported programs with
    run = jax.jit(train)
    exported = export.export(run, disabled_checks=aj.engines.export_checks())(RATES)
    (tmp_path / "program").write_bytes(exported.serialize())
    program = """
import jax
import jax.export
jax.config.update("jax_enable_x64", True)
import numpy as np
import alignjax
from jax._src import xla_bridge
assert not xla_bridge._backends, "the import started a backend"
exported = jax.export.deserialize(bytearray(open("program", "rb").read()))
np.savez("found", *jax.tree.leaves(exported.call(np.array([0.1, 0.2]))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        for name, expected in zip(found.files, jax.tree.leaves(run(RATES)), strict=True):
            np.testing.assert_array_equal(found[name], expected)


def test_kernels_for_gpus_are_registered_on_import_and_start_no_backend():
    program = """
import sys
from pathlib import Path
import jax
registered = []
register = jax.ffi.register_ffi_target
def note(name, function, platform, **more):
    registered.append((name, platform))
    register(name, function, platform=platform, **more)
jax.ffi.register_ffi_target = note
there = Path.exists
Path.exists = lambda path: path.name == "_gpu_kernels.so" or there(path)
import ctypes
load = ctypes.CDLL
here = lambda name, *more: sys.argv[1] if name.endswith("_gpu_kernels.so") else name
ctypes.CDLL = lambda name, *more: load(here(name), *more)
import alignjax
from alignjax.engines.gpu import library
from jax._src import xla_bridge
assert not xla_bridge._backends, "the import started a backend"
library.register_here()
assert library.register(library.FILE, "CUDA") is library.register(library.FILE, "CUDA")
assert registered.count((library.TARGET, "CUDA")) == 1, registered
assert alignjax.engines.available()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, emulated.load()._name],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
