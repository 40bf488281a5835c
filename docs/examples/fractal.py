"""Where do learning rates stop working? For two linear layers the boundary is a fractal.

A two-layer linear network of width 2 is trained by gradient descent with one learning rate a
layer, and each pixel is one training. Blue: it converges, the darker the faster. Grey: its risk
stays bounded and has no limit. Black to yellow: it diverges, the brighter the later. Enlarge a
piece of the boundary and there is more of it: the number of boxes of side s that it meets grows
as s^-D with D = 1.2 over the whole picture and 1.4 in the part below, where a smooth curve has 1.

    python docs/examples/fractal.py                                     # the whole picture
    python docs/examples/fractal.py --first 2.8 3.5 --second 1.9 2.6    # a part of it
    python docs/examples/fractal.py --side 2048 --store fractal.zarr    # goes on if interrupted

262,144 trainings of 400 steps take about ten seconds on two cores. For networks with nonlinear
layers see J. Sohl-Dickstein, *The boundary of neural network trainability is fractal*, 2024.
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray

import alignjax as aj

STEPS = 400
CONVERGED = 1e-6  # a risk that counts as converged


def train(first: jax.Array, second: jax.Array) -> dict[str, jax.Array]:
    """One training with one learning rate a layer: how it ended, and how soon."""
    problem = aj.factorization(jnp.diag(jnp.array([1.0, 0.5])))
    start = aj.initializers.gaussian(jax.random.key(3), (2, 2, 2), 0.5)
    rates = jnp.stack([first, second])
    run = aj.gradient_descent(problem, start, rates, steps=STEPS, save_at=aj.every(STEPS, 10))
    risk, diverged = run.observations["risk"], run.status == aj.Status.DIVERGED
    # A diverging step cubes the weights and with them the risk. So the moment at which the risk
    # passes the bound, at which a run is stopped, is a number between two steps.
    bound = jnp.sqrt(jnp.finfo(risk.dtype).max)
    passed = run.stopped_at - jnp.log(jnp.log(risk[-1]) / jnp.log(bound)) / jnp.log(3.0)
    return {
        "risk": risk[-1],
        "mean_log_risk": jnp.log(jnp.maximum(risk, 1e-12)).mean(),
        "diverged": diverged,
        "steps_to_divergence": jnp.where(diverged, passed, jnp.nan),
    }


def boundary_dimension(inside: np.ndarray, sides: tuple[int, ...] = (1, 2, 4, 8)) -> float:
    """The slope by which the number of boxes that meet a set's boundary falls with their side."""
    counts = []
    for side in sides:
        windows = np.lib.stride_tricks.sliding_window_view(inside, (side + 1, side + 1))
        boxes = windows[::side, ::side]
        counts.append((boxes.any((2, 3)) & ~boxes.all((2, 3))).sum())
    return float(-np.polyfit(np.log(sides), np.log(counts), 1)[0])


def draw(data: xarray.Dataset, path: str) -> None:
    """The picture: a colour map for runs that converge, another for those that diverge."""
    figure, axes = plt.subplots(figsize=(5, 4.4), layout="constrained")
    axes.set_facecolor("#cfcbc4")
    converged = data.mean_log_risk.where(data.risk < CONVERGED)
    axes.pcolormesh(data.first, data.second, converged.T, cmap="Blues_r")
    late = np.log(data.steps_to_divergence)
    low, high = np.nanquantile(late, [0.02, 0.98])
    axes.pcolormesh(data.first, data.second, late.T, cmap="inferno", vmin=low, vmax=high)
    axes.set(xlabel="learning rate of layer 1", ylabel="learning rate of layer 2")
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> xarray.Dataset:
    """Sweep, draw, measure the boundary, and return the data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", nargs=2, type=float, default=(0.01, 4), metavar=("LOW", "HIGH"))
    parser.add_argument("--second", nargs=2, type=float, default=(0.01, 4), metavar=("LOW", "HIGH"))
    parser.add_argument("--side", type=int, default=512, help="pixels along each axis")
    parser.add_argument("--store", help="a Zarr store, in which trainings survive a crash")
    parser.add_argument("--output", default="fractal.png")
    given = parser.parse_args(arguments)
    first, second = (
        np.linspace(*limits, given.side, dtype=np.float32) for limits in (given.first, given.second)
    )
    data = aj.sweep(train, {"first": first, "second": second}, store=given.store)
    draw(data, given.output)
    dimension = boundary_dimension(data.diverged.values)
    print(
        f"{float(data.diverged.mean()):.0%} diverge; their boundary has dimension {dimension:.2f}"
    )
    return data.assign_attrs(boundary_dimension=dimension)


if __name__ == "__main__":
    main()
