"""No count of devices or processes changes a bit of a sweep."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import alignjax

pytestmark = pytest.mark.optimized

ROOT = Path(alignjax.__file__).parents[1]

# One sweep in every process: axes, zipped axes, keys, a static axis, runs that diverge, and blocks
# that fit neither the axes nor the devices.
PROGRAM = """
    import hashlib, json, os, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    index, count, port = (int(text) for text in sys.argv[1:4])
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)
    import jax.numpy as jnp
    import numpy as np
    import alignjax as aj

    failing = os.environ.get("FAILING_PROCESS") == str(index)
    image = np.random.default_rng(1).standard_normal((1, 1, 40, 40), np.float32)

    def energy(kernel):
        filtered = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME")
        return jnp.mean(filtered**2)

    def checked(rate):
        if failing:
            raise RuntimeError("this process fails")
        return np.float32(rate)

    problem = aj.factorization(np.random.default_rng(0).standard_normal((4, 4), np.float32))

    def run(rate, scale, seed, depth, key):
        key = jax.random.fold_in(key, seed)
        start = aj.initializers.gaussian(key, (4,) * (depth + 1), scale)
        trained = aj.gradient_descent(problem, start, rate, steps=60, save_at=(0, 30, 60))
        if "FAILING_PROCESS" in os.environ:
            rate = jax.pure_callback(
                checked, jax.ShapeDtypeStruct((), jnp.float32), rate, vmap_method="sequential"
            )
        return {
            "rate_seen": rate,
            # XLA shares sums like these among threads, and rounds by how many there are.
            "slope": jax.grad(energy)(rate * jnp.ones((1, 1, 3, 3), jnp.float32)),
            "risk": trained.observations["risk"],
            "end": aj.end_to_end(trained.weights),
            "status": trained.status,
        }

    options = json.loads(sys.argv[4])
    data = aj.sweep(
        run,
        {"rate": np.linspace(0.01, 3, 31, dtype=np.float32), ("scale", "seed"): ([0.1, 1], [5, 6])},
        static={"depth": [2, 3]},
        key=jax.random.key(1),
        dims={"risk": ("step",), ("scale", "seed"): "start"},
        progress=False,
        **options,
    )
    assert 0 < (data.status.values == 1).mean() < 1
    values = {name: data[name].values for name in sorted(data.variables)}
    hashes = {n: hashlib.sha256(v.tobytes()).hexdigest() for n, v in values.items()}
    print(json.dumps({"hashes": hashes, "attrs": data.attrs, "devices": jax.local_device_count()}))
"""


def start(*, devices=1, index=0, count=1, port=0, environment=None, **options):
    """One process of a sweep, on some simulated devices."""
    environment = (
        os.environ
        | (environment or {})
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "NPROC": "4",
            "PYTHONPATH": str(ROOT),
        }
    )
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)]
    return subprocess.Popen(
        [*program, str(index), str(count), str(port), json.dumps(options)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def several(count, **options):
    """As many processes, connected over loopback."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start(index=i, count=count, port=port, **options) for i in range(count)]


@pytest.fixture(scope="module")
def alone():
    """The sweep in one process on one device, with blocks of at most 8 runs."""
    return finish(start(chunk=8))


@pytest.mark.parametrize("options", [{"devices": 4}, {"devices": 3}])
def test_several_devices_change_no_bit(alone, options):
    found = finish(start(chunk=8, **options))
    assert found["devices"] == options["devices"]
    assert found["hashes"] == alone["hashes"]
    assert found["attrs"] == alone["attrs"]


def test_the_chunk_that_is_found_does_not_depend_on_devices(alone):
    one, four = finish(start()), finish(start(devices=4))
    assert one == four | {"devices": 1}
    assert one["attrs"]["config_hash"] == alone["attrs"]["config_hash"]


@pytest.mark.slow
def test_three_processes_change_no_bit(alone, tmp_path):
    store = str(tmp_path / "results.zarr")
    for process in several(3, chunk=8, store=store, devices=2):
        assert finish(process)["hashes"] == alone["hashes"]


@pytest.mark.slow
def test_a_store_refused_by_the_first_process_is_refused_by_all(alone, tmp_path):
    store = str(tmp_path / "results.zarr")
    finish(start(chunk=8, store=store))
    processes = several(3, chunk=7, store=store)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode != 0 for process in processes)
    assert "StoreMismatchError" in errors[0]
    assert finish(start(chunk=8, store=store))["hashes"] == alone["hashes"]


@pytest.mark.slow
def test_all_processes_are_told_of_one_that_fails(alone, tmp_path):
    store = str(tmp_path / "results.zarr")
    processes = several(2, chunk=8, store=store, environment={"FAILING_PROCESS": "1"})
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode != 0 for process in processes)
    assert "this process fails" in errors[1]
    assert "in the sweep's runs depth[0:1], rate[" in errors[1]
    assert "process 1 of 2 failed, and says why; finished blocks are kept" in errors[0]


@pytest.mark.slow
def test_several_processes_need_a_store():
    for process in several(2, chunk=8):
        assert "give store=" in process.communicate(timeout=300)[1]
        assert process.returncode != 0


@pytest.mark.slow
def test_killing_one_of_three_processes_and_starting_again_changes_no_bit(alone, tmp_path):
    store = tmp_path / "results.zarr"
    processes = several(3, chunk=8, store=str(store))
    try:
        # Some blocks are on disk by then, and most are not.
        deadline = time.monotonic() + 120
        while not list(store.glob("complete/records/*.json")) and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.001)
        processes[1].kill()
        assert processes[1].wait() == -signal.SIGKILL
    finally:
        # The others wait for the dead one until JAX gives it up; a scheduler ends them.
        for process in processes:
            process.kill()
            process.communicate()
    assert list(store.glob("complete/records/*.json"))
    for process in several(3, chunk=8, store=str(store)):
        assert finish(process)["hashes"] == alone["hashes"]
