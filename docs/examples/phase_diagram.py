"""Which learning rates train a deep linear network, from which initial scale, at which depth?

Each pixel is one training: a network of width 2 factorizes diag(2, 1), its layers aligned, the
first one three times as large as the others, which start at the initial scale. Colour tells the
steps after which the risk stays below a tolerance. Two predictions of
`alignjax.theory.alignment.stability_threshold` are drawn in; neither needs a training:

- solid: the learning rate above which the minimum that gradient flow reaches from this start is
  unstable. Flow keeps the imbalance of the layers, so it depends on the scale;
- dashed: the one above which even the flattest minimum, the balanced one, is unstable.

Descent converges left of the solid line, but for rates too small for the number of steps, and for
starts so large that they are steeper than any minimum. Between the lines it is thrown out of the
minimum that flow finds and settles in a flatter one. Right of the dashed line no minimum attracts:
risks stay bounded without a limit, or blow up.

    python docs/examples/phase_diagram.py            # 72,000 trainings: half a minute on two cores
    python docs/examples/phase_diagram.py --quick    # 720 of them, at two depths
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Patch

import alignjax as aj

WIDTH = 2
STEPS = 2000
SAVED = aj.log_steps(STEPS, 80)
TOLERANCE = 1e-6
BOUNDED, DIVERGED, LINES = "#e4e0da", "#3b2f2f", "#e8432e"


def start_values(scale: jax.Array, depth: int) -> jax.Array:
    """The singular values that the layers start with, shape (depth, WIDTH)."""
    return jnp.full((depth, WIDTH), scale).at[0].multiply(3.0)


def diagram(depths: list[int], rates: np.ndarray, scales: np.ndarray) -> xarray.Dataset:
    """All trainings, with the predictions beside them."""
    theory = aj.theory.alignment
    problem = aj.factorization(jnp.diag(jnp.array([2.0, 1.0])))
    certificate = theory.certify(problem)

    def train(rate: jax.Array, scale: jax.Array, depth: int) -> dict[str, jax.Array]:
        start = aj.initializers.aligned(
            jax.random.key(0), certificate, (WIDTH,) * (depth + 1), start_values(scale, depth)
        )
        run = aj.gradient_descent(problem, start, rate, steps=STEPS, save_at=SAVED)
        below = run.observations["risk"] <= TOLERANCE
        stays = jnp.flip(jnp.cumprod(jnp.flip(below)))  # 1 where it is below from here on
        steps = jnp.where(below[-1], run.step[jnp.argmax(stays)], jnp.nan)
        return {"steps": steps, "diverged": run.status == aj.Status.DIVERGED}

    def flow_threshold(scale: jax.Array, depth: int) -> jax.Array:
        minimum = theory.minimum_singular_values(certificate, start_values(scale, depth))
        return theory.stability_threshold(certificate, singular_values=minimum)

    of_flow = [[float(flow_threshold(scale, depth)) for scale in scales] for depth in depths]
    flattest = [float(theory.stability_threshold(certificate, depth=depth)) for depth in depths]
    data = aj.sweep(train, {"scale": scales, "rate": rates}, static={"depth": depths})
    return data.assign(of_flow=(("depth", "scale"), of_flow), flattest=("depth", flattest))


def draw(data: xarray.Dataset, path: str) -> None:
    """The phase diagram, a panel a depth."""
    figure, panels = plt.subplots(
        1, data.depth.size, figsize=(7.2, 3.3), sharey=True, layout="constrained"
    )
    for panel, depth in zip(panels, data.depth.values, strict=True):
        one = data.sel(depth=depth)
        panel.pcolormesh(
            data.rate, data.scale, one.diverged, cmap=ListedColormap([BOUNDED, DIVERGED])
        )
        image = panel.pcolormesh(data.rate, data.scale, one.steps, norm=LogNorm(2, STEPS))
        (flow,) = panel.plot(one.of_flow, data.scale, color=LINES)
        flattest = panel.axvline(float(one.flattest), color=LINES, linestyle="--")
        panel.set(xscale="log", yscale="log", title=f"depth {depth}", xlabel="learning rate")
        panel.set(xlim=(data.rate[0], data.rate[-1]), ylim=(data.scale[0], data.scale[-1]))
    panels[0].set_ylabel("initial scale")
    figure.colorbar(image, ax=panels, label=f"steps until the risk stays below {TOLERANCE:g}")
    outcomes = {
        "not converged": Patch(color=BOUNDED),
        "diverged": Patch(color=DIVERGED),
        "predicted: minimum of the flow unstable": flow,
        "every minimum unstable": flattest,
    }
    figure.legend(
        outcomes.values(), outcomes, loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=170)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> xarray.Dataset:
    """Sweep, draw, and return the data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a coarse grid")
    parser.add_argument("--output", default="phase_diagram.png")
    given = parser.parse_args(arguments)
    depths, columns, rows = ([2, 3], 30, 12) if given.quick else ([2, 3, 4], 200, 120)
    rates = np.geomspace(0.01, 2, columns, dtype=np.float32)
    scales = np.geomspace(0.03, 1.5, rows, dtype=np.float32)
    data = diagram(depths, rates, scales)
    draw(data, given.output)
    return data


if __name__ == "__main__":
    main()
