"""The audits of theory: each runs at quick scale and finds what is known to be true."""

import jax
import numpy as np
import pytest

from experiments.alignment import _aligned
from tests.audits import audit, refuted

EXPERIMENTS = {
    "corollary_1": {"printed", "lesser_gain"},
    "proposition_1": {"bound_largest", "matrices_at_bound"},
    "proposition_2": set(),
    "saddles": {"small_starts"},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_come_out_as_known_and_everything_is_written(name, tmp_path):
    context = audit(f"alignment/{name}", tmp_path)
    assert refuted(context) == EXPERIMENTS[name]


def test_a_push_is_its_share_of_each_layer_whatever_the_layers_are():
    rng = np.random.default_rng(0)
    layers = tuple(10.0**i * rng.standard_normal(shape) for i, shape in enumerate([(3, 4), (2, 3)]))
    moved = _aligned.pushed(jax.random.key(0), layers, 1e-6)
    for w, m in zip(layers, moved, strict=True):
        assert np.linalg.norm(m - w) == pytest.approx(1e-6 * np.linalg.norm(w), rel=1e-8)
        assert np.abs((m - w) / w).min() > 0
