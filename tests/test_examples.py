"""Every example runs, draws its picture, and what it says is so."""

import importlib.util
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


def load(name):
    """An example as a module, without running its `main`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def picture(tmp_path):
    """Where an example draws to; it must have drawn something, and closed its figure."""
    path = tmp_path / "picture.png"
    yield str(path)
    assert path.stat().st_size > 10_000
    assert not plt.get_fignums()


def test_the_list_of_examples_is_complete():
    listed = set(re.findall(r"\]\(([^)]+)\)", (FOLDER / "README.md").read_text()))
    assert listed == {p.name for p in FOLDER.iterdir() if p.suffix in {".py", ".png"}}


def test_the_predicted_thresholds_bound_the_rates_that_converge(picture):
    data = load("phase_diagram").main(["--quick", "--output", picture])
    converged = np.isfinite(data.steps)
    assert not converged.where(data.rate > 1.02 * data.flattest, False).any()
    # Small starts meet no steeper place on their way than the minimum.
    safe = (data.rate < 0.95 * data.of_flow) & (data.scale < 0.5)
    assert not data.diverged.where(safe, False).any()
    assert converged.where(safe, True).sel(depth=2).all()
    thrown_out = (data.rate > 1.05 * data.of_flow) & (data.rate < 0.95 * data.flattest)
    assert converged.where(thrown_out, False).any("rate").any("scale").all()


def test_the_boundary_of_divergence_has_a_dimension_above_one(picture):
    fractal = load("fractal")
    part = ["--first", "2.8", "3.5", "--second", "1.9", "2.6"]
    data = fractal.main([*part, "--side", "128", "--output", picture])
    assert data.boundary_dimension > 1.2
    x, y = np.meshgrid(*[np.linspace(-1, 1, 129)] * 2)
    assert fractal.boundary_dimension(x**2 + y**2 < 0.5) == pytest.approx(1, abs=0.05)


def test_oscillators_fall_into_step_where_predicted(picture):
    data = load("kuramoto").main(["--quick", "--output", picture])
    order = data.order.mean("start")
    ratio = data.coupling / (2 * data.width)
    assert (ratio < 0.8).any()
    assert (order.where(ratio < 0.8, 0) < 0.2).all()
    assert (abs(order - data.predicted).where(ratio > 1.2, 0) < 0.05).all()


def test_the_layers_of_a_small_start_come_near_to_rank_one(capsys):
    first, *_, last = load("watch_alignment").main(steps=200)
    hidden = [".layers[0].weight", ".layers[1].weight"]
    assert all(first[path] < 0.4 and 0.75 < last[path] <= 1 for path in hidden)
    assert capsys.readouterr().out.count("step") == 3


@pytest.mark.slow
def test_two_processes_share_a_sweep_that_xarray_opens_alone(tmp_path, capfd):
    store = str(tmp_path / "runs.zarr")
    load("two_processes").main(["--store", store])
    told = capfd.readouterr().out
    assert all(f"process {number} of 2: 2,048 runs" in told for number in (0, 1))
    with xarray.open_zarr(store) as data:
        assert data.complete.all()
        assert np.isfinite(data.risk).all()
        assert not data.status.sel(rate=slice(0, 0.02)).any()
        assert data.status[-1, -1] == 1
