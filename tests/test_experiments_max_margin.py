"""The experiments on maximum margin: each runs at quick scale and finds what is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

import alignjax as aj
from alignjax import datasets
from alignjax.theory.margin import max_margin
from experiments.max_margin import _separable, ball_and_margin, digits_pair, extreme_times, lemmas
from tests.audits import audit, refuted

REFUTED = {
    "figure_1": set(),
    "extreme_times": {"risk_explodes", "without_loglog"},
    "ball_and_margin": {"printed_leaves"},
    "lemmas": {
        "lemma_5_tight",
        "lemma_4_tight_exponential",
        "lemma_4_tight_logistic",
        "eq_20_1",
        "eq_21_1",
        "balance_printed",
    },
    "digits_pair": set(),
}


@pytest.mark.parametrize("name", REFUTED)
def test_claims_come_out_as_known_and_everything_is_written(name, tmp_path):
    pytest.importorskip("sklearn" if name == "digits_pair" else "scipy")
    assert refuted(audit(f"max_margin/{name}", tmp_path)) == REFUTED[name]


def test_data_are_in_general_position_and_starts_satisfy_assumption_2():
    data = _separable.separable(jax.random.key(3), 25, 3, least_turn=0.2)
    assert np.linalg.norm(data.inputs, axis=1).max() == pytest.approx(1)
    margins = data.labels * (data.inputs @ np.asarray(data.found.direction))
    assert margins.min() == pytest.approx(float(data.found.margin))
    assert len(data.found.support) == 3
    assert data.late.margin * np.linalg.norm(data.late.offset) >= 0.2
    problem = data.problem("exponential")
    many = _separable.starts(jax.random.key(0), problem, (3, 4, 1), 1.0, 30)
    assert many[0].shape == (30, 4, 3)
    assert float(jax.vmap(lambda *w: aj.risk(problem, w))(*many).max()) <= 1
    with pytest.raises(RuntimeError, match="satisfy Assumption 2"):
        _separable.starts(jax.random.key(0), problem, (3, 4, 1), 1e4, 30)


def test_angles_are_exact_where_a_cosine_is_1():
    u = np.array([0.6, 0.8])
    w = 3 * (u + 1e-12 * np.array([-0.8, 0.6]))
    assert _separable.angles(w, u) == pytest.approx(1e-12, rel=1e-3)


def test_exponents_are_those_of_power_laws():
    x = np.geomspace(10, 1000, 7)[:, None]
    y = np.array([2.0, 5.0]) * x ** np.array([-0.5, -1.5])
    np.testing.assert_allclose(extreme_times.exponent(x, y), [-0.5, -1.5], rtol=1e-12)


def test_the_printed_rule_leaves_balls_and_the_library_does_not():
    problem = _separable.separable(jax.random.key(1), 20, 3).problem("logistic")
    many = _separable.starts(jax.random.key(0), problem, (3, 4, 4, 1), 1.0, 10)
    found = ball_and_margin.printed_rule(problem, many, 200)
    assert found.left.sum() > 0
    assert found.rise.max() < 0
    assert found.share.min() >= 0.5


def test_the_counterexample_holds_for_any_size():
    for size in (0.3, 2.0):
        risk, apart = lemmas.counterexample(size, 0.0, lemmas.SYMMETRIC_UNTIL)
        assert risk[0] == pytest.approx(np.exp(size**2))
        assert risk.min() >= 1
        assert apart.max() < 1e-12
        # what is conserved, by the flow's own law, for a tilt that is no roundoff
        risk, apart = lemmas.counterexample(size, 1e-3, lemmas.SYMMETRIC_UNTIL)
        across = np.sqrt(4 * np.log(risk) + apart**2)  # 4 ln R = |w_1 - w_2|^2 - |w_1 + w_2|^2
        np.testing.assert_allclose(apart * across, apart[0] * across[0], rtol=1e-7)


def test_a_pair_is_decided_with_its_proof():
    images = np.zeros((4, 1, 2), np.uint8)
    images[:, 0] = [[200, 0], [100, 50], [0, 200], [50, 100]]
    labels = np.array([0, 0, 1, 1], np.uint8)
    some = datasets.Images(images, labels, "some", "nowhere")
    pair = digits_pair.decide(some, 0, 1)
    X, signs = digits_pair.labelled(some, 0, 1)
    assert pair.margin == pytest.approx(float(max_margin(X, signs).margin))
    assert pair.certificate < 1e-12
    # positive inputs and one class: the other label on the same point cannot be told apart
    same = datasets.Images(images[[0, 0]], labels[[0, 2]], "some", "nowhere")
    pair = digits_pair.decide(same, 0, 1)
    assert (pair.margin, pair.support) == (0.0, 2)


def test_thinning_keeps_the_support():
    X = jnp.array([[3.0, 0.0], [1.0, 0.2], [1.0, -0.3], [2.0, 5.0]])
    found = max_margin(X, np.ones(4))
    kept = digits_pair.thinned(np.asarray(X), np.ones(4), found, 2)
    assert set(kept) == {1, 2}
