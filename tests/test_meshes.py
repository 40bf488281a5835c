"""Descents and the flow on meshes of several devices, whatever the types of their axes.

JAX says how many devices there are when it starts, so all cases run in one process of their own.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np

import alignjax
from alignjax._meshes import _with_arrays

ROOT = Path(alignjax.__file__).parents[1]

PROGRAM = """
    import contextlib, json
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    import alignjax as aj

    X = np.array([[1.0, 0.2], [-0.3, 0.8], [0.5, -1.1], [0.7, 0.4]])
    problem = aj.regression(X, X[::-1])
    start = (X[:2], X[2:])
    pair = aj.classification(np.abs(X), np.ones(4, int), "exponential")
    small = (X[:2] / 8, X[2:3])
    reduced = aj.reduce(aj.factorization(np.diag([1.0, 0.6])), (np.eye(2), np.eye(2) / 2))

    def momentum(rate, **batches):
        # What an observation closes over lies on the mesh too, and batches differ by the run.
        optimizer = optax.sgd(rate, momentum=0.9)
        look = lambda w: {"risk": rate * aj.risk(problem, w)}
        return aj.optimizer_descent(problem, start, optimizer, steps=3, observe=look, **batches)

    def batched(rate):
        key = jax.random.fold_in(jax.random.key(0), (1e3 * rate).astype(jnp.int32))
        return momentum(rate, batch_size=2, key=key)

    def flow(scale):
        scaled = (scale * small[0], small[1])
        return aj.gradient_flow(
            pair, scaled, times=[0.0, 0.1], log_time=True, solver="explicit", rtol=1e-4
        )

    CALLS = {
        "gradient_descent": lambda rate: aj.gradient_descent(problem, start, rate, steps=3),
        "gradient_descent by XLA": lambda rate: aj.gradient_descent(
            problem, (rate * start[0], start[1]), 0.1, steps=3, until=1e-3, engine="xla"
        ),
        "gradient_descent of taps": lambda rate: aj.gradient_descent(
            problem, (rate * X[0], X[1]), rate, steps=2, structure=aj.structures.Circulant(2)
        ),
        "optimizer_descent": momentum,
        "optimizer_descent by batches": batched,
        "adaptive_descent": lambda constant: aj.adaptive_descent(
            pair, small, steps=3, rule="margin", constant=constant
        ),
        "reduced_descent": lambda rate: aj.reduced_descent(reduced, rate, steps=9),
        "reduced_descent by XLA": lambda rate: aj.reduced_descent(
            reduced, rate, steps=2, engine="xla"
        ),
        "gradient_flow": flow,
    }
    rates = jnp.linspace(0.01, 0.1, 4)
    expected = {name: jax.eval_shape(jax.vmap(call), rates) for name, call in CALLS.items()}

    def mesh(shape, kind):
        names = ("runs", "more")[: len(shape)]
        return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))

    def difference(name, got):
        plain = jax.jit(jax.vmap(CALLS[name]))(rates)
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True)
        return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)

    seen = {}
    # Values are compared where results come from kernels, batches and a loop of XLA's.
    RUN = ("gradient_descent", "gradient_descent of taps", "optimizer_descent by batches")
    for kind in (AxisType.Explicit, AxisType.Auto):
        for shape in ((4,), (2, 2)):
            for is_set in (False, True):
                if kind == AxisType.Auto and (shape == (4,)) == is_set:
                    continue  # automatic axes never were a matter
                where = mesh(shape, kind)
                axes = PartitionSpec(where.axis_names)
                lying = jax.device_put(rates, NamedSharding(where, axes))
                with jax.set_mesh(where) if is_set else contextlib.nullcontext():
                    for name, call in CALLS.items():
                        case = f"{kind.name} {shape} {is_set} {name}"
                        run = jax.vmap(call)
                        try:
                            # Of most cases the types tell all.
                            first = shape == (4,) and kind == AxisType.Explicit and not is_set
                            if first and name in RUN:
                                got = jax.jit(run)(lying)
                                sharded = got.status.sharding.spec == axes
                                seen[case] = difference(name, got) if sharded else "gathered"
                            else:
                                types = jax.tree.leaves(jax.eval_shape(run, lying))
                                wanted = jax.tree.leaves(expected[name])
                                same = [t.shape == w.shape for t, w in zip(types, wanted)]
                                seen[case] = 0.0 if all(same) else "shapes"
                        except Exception as error:
                            seen[case] = f"{type(error).__name__}: {error}"[:300]
    # A gradient through a run, and a run of which nothing lies on the mesh that is set.
    where = mesh((4,), AxisType.Explicit)
    lying = jax.device_put(rates, NamedSharding(where, PartitionSpec("runs")))
    loss = lambda rates: jax.vmap(CALLS["gradient_descent"])(rates).weights[0].sum()
    slopes = jax.jit(jax.grad(loss))
    seen["gradient"] = float(np.abs(np.asarray(slopes(lying)) - np.asarray(slopes(rates))).max())
    with jax.set_mesh(where):
        got = jax.vmap(CALLS["gradient_descent"])(rates)
        seen["set alone"] = difference("gradient_descent", got)
    # What is observed of a batch by itself, on a mesh with explicit axes.
    S = aj.structures
    signals = np.ones((2, 4))
    OBSERVED = {
        "sharpness": lambda rate: aj.metrics.sharpness(problem, (rate * start[0], start[1])),
        "tracker": lambda rate: tracked((rate * start[0], start[1]), 1),
        "Circulant": lambda rate: S.Circulant(4).apply(rate * X[:2].ravel(), signals),
        "Toeplitz": lambda rate: S.Toeplitz(4).apply(rate * X.ravel()[:7], signals),
        "Conv2d": lambda rate: S.Conv2d((1, 4), (1, 3)).apply(rate * X.ravel()[:3], signals),
    }

    def tracked(weights, calls):
        tracker = aj.metrics.SpectralTracker.init(weights)
        if calls == 1:
            return tracker.update(weights)[0]
        # Vectors of one call go into the next: a loop's carry.
        again = lambda tracker, _: tracker.update(weights)[::-1]
        return jax.lax.scan(again, tracker, None, length=calls)[1]

    for name, call in OBSERVED.items():
        CALLS[name] = call
        for is_set in (False, True):
            with jax.set_mesh(where) if is_set else contextlib.nullcontext():
                case = f"batch of {name} {is_set}"
                try:
                    got = jax.jit(jax.vmap(call))(lying)
                except Exception as error:
                    seen[case] = f"{type(error).__name__}: {error}"[:300]
                    continue
            seen[case] = difference(name, got)

    # Data that lie on the mesh by samples, alone and beside what does not, eagerly and jitted.
    targets = X @ np.array([[1.0, -0.5], [0.3, 2.0]])
    sharded = [jax.device_put(a, NamedSharding(where, PartitionSpec("runs"))) for a in (X, targets)]
    signs = [aj.classification(x, np.ones(4, int), "exponential") for x in (X, sharded[0])]

    def made(X, Y, signs):
        moments = aj.accumulate([(X, Y), (X, targets)])
        given = moments.input_moment, moments.cross_moment, moments.target_energy
        problems = aj.regression(X, Y), aj.regression(X, targets)
        return (
            [aj.gradient(problem, start) for problem in problems],
            (aj.inversion(X.T).minimizer, aj.from_moments(*given).minimizer),
            aj.gradient(signs, small),
        )

    plain = made(X, targets, signs[0])
    for name, call in {"eager": made, "jitted": jax.jit(made)}.items():
        for is_set in (False, True):
            with jax.set_mesh(where) if is_set else contextlib.nullcontext():
                case = f"samples {name} {is_set}"
                try:
                    pairs = zip(jax.tree.leaves(call(*sharded, signs[1])), jax.tree.leaves(plain))
                    seen[case] = max(float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)
                except Exception as error:
                    seen[case] = f"{type(error).__name__}: {error}"[:300]
    kept = aj.regression(*sharded).inputs.sharding.spec
    seen["samples stay"] = 0.0 if kept == PartitionSpec("runs") else "gathered"

    # Inside `shard_map`, which checks by default what varies along which axis: all in one program.
    def optimized(optimizer):
        return lambda rate: aj.optimizer_descent(problem, start, optimizer(rate), steps=3).weights

    INSIDE = OBSERVED | {
        "tracker in a loop": lambda rate: tracked((rate * start[0], start[1]), 2),
        "sgd": optimized(optax.sgd),
        "momentum": lambda rate: momentum(rate).weights,
        "adam": optimized(optax.adam),
        "minibatches": lambda rate: batched(rate).weights,
    }

    def inside(rate):
        return {name: call(rate) for name, call in INSIDE.items()}

    spec, CALLS["inside"] = PartitionSpec("runs"), inside
    plain = mesh((4,), AxisType.Auto)
    mapped = jax.shard_map(jax.vmap(inside), mesh=plain, in_specs=spec, out_specs=spec)
    seen["shard_map"] = difference("inside", jax.jit(mapped)(rates))
    print(json.dumps(seen))
"""


def test_descents_and_the_flow_run_on_meshes_with_explicit_and_automatic_axes():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert len(seen) == (4 + 2) * 9 + 2 + 5 * 2 + 5 + 1
    wrong = {case: found for case, found in seen.items() if not (found == 0 or found < 1e-13)}
    assert not wrong


@jax.tree_util.register_pytree_node_class
class Box:
    """A pytree whose child is made anew at every look."""

    def __init__(self, *items):
        self.items = items

    def tree_flatten(self):
        return (list(self.items),), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children[0])


def test_arrays_of_parts_that_are_made_anew_at_every_look_are_told_apart():
    boxes = tuple(Box(jax.numpy.float32(i)) for i in range(40))
    changed = _with_arrays((boxes, lambda: boxes), lambda array: array + 10)
    for found in (changed[0], changed[1]()):
        np.testing.assert_array_equal([box.items[0] for box in found], np.arange(40) + 10)
