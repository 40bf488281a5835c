"""A sweep in a process of its own, to be killed, starved of disk, or left alone.

``python -m tests.sweep_to_kill STORE [--width 64]`` prints ``ready`` when the sweep begins. It has
23 x 9 runs in blocks of at most 5, two static choices, random keys, and runs that diverge. With
``--process 0 --processes 3 --port PORT`` it is one of several that share the sweep.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import sweep


def make_run(width):
    """One descent on w⁴/4 from a random start; a block is as large as there are weights."""

    def run(rate, scale, momentum, key):
        def step(state, _):
            weights, velocity = state
            velocity = (0.9 if momentum else 0.0) * velocity - rate * weights**3
            return (weights + velocity, velocity), jnp.mean(weights**4) / 4

        start = scale * jax.random.normal(key, (width,))
        (weights, _), risk = jax.lax.scan(step, (start, jnp.zeros(width)), length=40)
        return {"risk": risk[::4], "weights": weights, "diverged": ~jnp.isfinite(risk[-1])}

    return run


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--port", type=int)
    given = parser.parse_args(arguments)
    if given.processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{given.port}", num_processes=given.processes, process_id=given.process
        )
    print("ready", flush=True)
    sweep(
        make_run(given.width),
        {
            "rate": np.geomspace(0.01, 10, 23, dtype=np.float32),
            "scale": np.linspace(0.1, 3, 9, dtype=np.float32),
        },
        static={"momentum": [False, True]},
        key=jax.random.key(7),
        dims={"risk": {"step": np.arange(0, 40, 4)}, "weights": "weight"},
        store=given.store,
        chunk=5,
        progress=False,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
