"""The README's example is run word for word."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def example():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) == 1
    return blocks[0]


def test_readme_example_has_about_twenty_lines():
    assert len(example().strip().splitlines()) <= 24


def test_readme_example_draws_its_picture_and_the_threshold_splits_the_rates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    try:
        exec(compile(example(), "README.md", "exec"), names)
        assert (tmp_path / "learning_rates.png").stat().st_size > 10_000
    finally:
        plt.close("all")
    # Depth 4, the last one drawn: converged below the threshold (but for rates too small for
    # the number of steps), not converged above it.
    rates, edge = np.asarray(names["rates"]), float(names["edge"])
    final = np.asarray(names["run"].observations["risk"][:, -1])
    floor = float(names["problem"].minimum_risk)
    below = (rates > 0.2 * edge) & (rates < 0.95 * edge)
    assert below.sum() > 10
    assert (final[below] < floor + 1e-9).all()
    assert (final[rates > 1.05 * edge] > floor + 1e-6).all()


@pytest.mark.parametrize("link", ["benchmarks/README.md", "docs/learning_rates.png"])
def test_readme_links_exist(link):
    assert link in README.read_text()
    assert (README.parent / link).exists()
