"""One sweep shared by several processes, on one machine or on many.

All processes make the same call with the same arguments. Each computes its own blocks of the grid
and writes them into one store, which must lie where all of them reach it; each gets the whole data
set. A single process, or any other number of them, would give the same numbers to the last bit.

Without arguments the script starts two of itself on this machine:

    python docs/examples/two_processes.py

On a cluster, start it once a process and give the coordinator's address (any free port of the
first machine), how many processes there are and the number of this one:

    python two_processes.py --coordinator node0:9876 --processes 2 --process 0 --store /shared/runs

Under SLURM JAX finds these three by itself, so `jax.distributed.initialize()` takes no arguments:

    srun --nodes 2 --ntasks-per-node 1 python two_processes.py --slurm --store /shared/runs.zarr

If a process dies, end the others and start all of them again: finished blocks are not done twice.
"""

import argparse
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import xarray

import alignjax as aj


def train(rate: jax.Array, scale: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """One training of three layers, from a start that no other run has."""
    problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0, 0.5])))
    start = aj.initializers.gaussian(key, (3, 3, 3, 3), scale)
    run = aj.gradient_descent(problem, start, rate, steps=500)
    return {"risk": run.observations["risk"][-1], "status": run.status}


def work(store: str) -> None:
    """What every process does, after it is connected to the others."""
    axes = {
        "rate": np.geomspace(0.01, 1, 64, dtype=np.float32),
        "scale": np.geomspace(0.1, 1, 32, dtype=np.float32),
    }
    # The key makes 2,048 starts. Small blocks, so that both processes have some to do.
    data = aj.sweep(train, axes, key=jax.random.key(0), store=store, chunk=128)
    diverged = float((data.status == aj.Status.DIVERGED).mean())
    print(
        f"process {jax.process_index()} of {jax.process_count()}: "
        f"{data.status.size:,} runs, {diverged:.1%} diverged"
    )


def spawn(processes: int, store: str) -> None:
    """Start this script once a process, on this machine, and wait for all of them.

    Raises:
        RuntimeError: if one of them fails.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = ["--coordinator", address, "--processes", str(processes), "--store", store]
    cpu = os.environ | {"JAX_PLATFORMS": "cpu"}  # one accelerator does not serve two processes
    started = [
        subprocess.Popen([sys.executable, __file__, *options, "--process", str(number)], env=cpu)
        for number in range(processes)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"the processes ended with the codes {codes}")


def main(arguments: list[str] | None = None) -> None:
    """Be one process of several, or start them and look at what they stored."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", default="runs.zarr", help="a folder that all processes reach")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process is")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--process", type=int, help="the number of this one, from 0")
    parser.add_argument("--slurm", action="store_true", help="started by srun")
    given = parser.parse_args(arguments)
    if given.slurm:
        jax.distributed.initialize()
        work(given.store)
    elif given.coordinator:
        jax.distributed.initialize(given.coordinator, given.processes, given.process)
        work(given.store)
    else:
        spawn(given.processes, given.store)
        # Whoever reads the results needs xarray and zarr, and neither JAX nor this package.
        print(xarray.open_zarr(given.store))


if __name__ == "__main__":
    main()
