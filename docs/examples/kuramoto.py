"""A sweep of something that is no network: when do oscillators fall into step?

`alignjax.sweep` takes any function that JAX can trace. Here it is Kuramoto's model: N oscillators
with frequencies of their own pull each other's phases together,

    d theta_i / dt = omega_i + K r sin(psi - theta_i),    r e^(i psi) = mean_j e^(i theta_j).

With frequencies from a Lorentz distribution of half-width gamma, infinitely many of them fall into
step once the coupling K passes 2 gamma, and their order r is then sqrt(1 - 2 gamma / K)
(Y. Kuramoto, 1975). The sweep runs over couplings, widths and random starts; the data set that
comes back is averaged and drawn by xarray's own means.

    python docs/examples/kuramoto.py            # 600 runs: ten seconds on two cores
    python docs/examples/kuramoto.py --quick    # 36 of them, of fewer oscillators
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray

import alignjax as aj

STEP = 0.05  # in time


def simulate(
    coupling: jax.Array, width: jax.Array, start: jax.Array, *, oscillators: int, steps: int
) -> dict[str, jax.Array]:
    """One population from random phases: its order, averaged over the second half of the time."""
    shares = (jnp.arange(oscillators) + 0.5) / oscillators
    frequencies = width * jnp.tan(jnp.pi * (shares - 0.5))
    phases = jax.random.uniform(start, (oscillators,), maxval=2 * jnp.pi)

    def step(phases: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        x, y = jnp.cos(phases), jnp.sin(phases)
        pull = y.mean() * x - x.mean() * y  # r sin(psi - theta)
        moved = phases + STEP * (frequencies + coupling * pull)
        return moved, jnp.hypot(x.mean(), y.mean())

    _, order = jax.lax.scan(step, phases, length=steps)
    return {"order": order[steps // 2 :].mean()}


def draw(data: xarray.Dataset, path: str) -> None:
    """Measured order, mean and spread over starts, and the prediction."""
    figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    for width in data.width.values:
        one = data.sel(width=width)
        mean, spread = one.order.mean("start"), one.order.std("start")
        line = axes.errorbar(data.coupling, mean, spread, fmt=".", label=f"width {width:g}")
        axes.plot(data.coupling, one.predicted, color=line[0].get_color())
    axes.set(xlabel="coupling", ylabel="order", ylim=(0, 1))
    axes.legend(title="lines: infinitely many", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> xarray.Dataset:
    """Sweep, draw, and return the data with the prediction beside them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few runs of few oscillators")
    parser.add_argument("--output", default="kuramoto.png")
    given = parser.parse_args(arguments)
    oscillators, steps, couplings, starts = (200, 800, 6, 2) if given.quick else (500, 2000, 40, 5)
    data = aj.sweep(
        functools.partial(simulate, oscillators=oscillators, steps=steps),
        {
            "coupling": np.linspace(0.1, 4, couplings, dtype=np.float32),
            "width": np.array([0.25, 0.5, 1.0], np.float32),
            "start": jax.random.split(jax.random.key(0), starts),
        },
        units={"coupling": "1 / time", "width": "1 / time"},
    )
    data = data.assign(predicted=np.sqrt(np.maximum(0, 1 - 2 * data.width / data.coupling)))
    draw(data, given.output)
    return data


if __name__ == "__main__":
    main()
