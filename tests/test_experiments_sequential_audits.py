"""The audits of sequential learning: each runs at quick scale and finds what is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from experiments.runs import require_finished
from experiments.sequential import _departure, _mode_descent, _modes, corollary_2, theorem_2
from tests.audits import audit, refuted

EXPERIMENTS = {
    "theorem_2": {"half_height_printed", "order", "at_transition_1"},
    "corollary_2": {
        "flow_orders_apart",
        "descent_orders_apart",
        "risk_1_refuted",
        "spectra_3",
        "spectra_5",
    },
    "discrete": {
        "product_printed",
        "printed_lower",
        "printed_upper",
        "restored_upper",
        "printed_example",
        "steps_growth",
        "steps_printed",
        "steps_limit_printed",
        "printed_necessary",
        "cycle_height",
    },
    "perturbation": {"loose", "images_end", "images_risk"},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_come_out_as_known_and_everything_is_written(name, tmp_path):
    assert refuted(audit(f"sequential/{name}", tmp_path)) == EXPERIMENTS[name]


def test_problems_and_starts_are_what_their_bases_say():
    bases = _modes.random_bases(jax.random.key(0), 3)
    target, inputs = np.array([2.0, 1.0, 0.5]), np.array([1.0, 3.0, 0.2])
    problem = _modes.problem_in(bases, target, inputs)
    moment, cross = problem.full_moments()
    np.testing.assert_allclose(_modes.seen_from(bases, cross), np.diag(target), atol=1e-14)
    np.testing.assert_allclose(bases.V.T @ moment @ bases.V, np.diag(inputs), atol=1e-14)
    # realizable: nothing is left at the minimum
    assert abs(float(problem.minimum_risk)) < 1e-14
    first, second = _modes.start_in(bases, 1.5)
    np.testing.assert_allclose(first @ first.T, second.T @ second, atol=1e-15)
    np.testing.assert_allclose(
        _modes.seen_from(bases, second @ first), np.exp(-3) * np.eye(3), atol=1e-15
    )


def test_a_coupling_has_no_diagonal_and_spectral_norm_1():
    matrix = _departure.coupling(jax.random.key(1), 5)
    assert float(jnp.abs(jnp.diagonal(matrix)).max()) == 0.0
    assert float(jnp.linalg.norm(matrix, 2)) == pytest.approx(1, rel=1e-14)


def test_runs_that_ended_early_are_refused():
    bases = _modes.random_bases(jax.random.key(0), 1)
    problem = _modes.problem_in(bases, [1.0], [1.0])
    run = aj.gradient_descent(problem, _modes.start_in(bases, 1.0), 50.0, steps=50)
    with pytest.raises(RuntimeError, match="name: runs ended early"):
        require_finished("name", run)


def test_half_heights_are_read_off_a_logistic_exactly():
    t = np.linspace(0, 1, 41)
    at = np.array([0.31, 0.52, 0.77])
    modes = theorem_2.HEIGHT / (1 + np.exp(-20 * (t[:, None] - at)))
    np.testing.assert_allclose(theorem_2.half_heights(t, modes), at, atol=1e-13)


def test_the_grid_of_the_bounds_stays_where_they_are_stated():
    sigma, lam, rate, start, steps = _mode_descent.grid((4, 3, 5, 7, 20), 200)
    assert (start > 0).all()
    assert (lam * start <= sigma * (1 + 1e-15)).all()
    assert (2 * rate * sigma <= 1 + 1e-15).all()
    assert steps[0] == 0
    assert steps[-1] == 200


def test_modes_that_pass_their_height_in_a_cycle_are_not_separate():
    target, rate = np.array([[1.0, 0.5]]), np.array([1.2])
    times = _mode_descent.DELTA / (rate[:, None] * target)
    assert not _mode_descent.separated(target, rate, times)[0]
    rate = np.array([0.6])
    assert _mode_descent.separated(target, rate, _mode_descent.DELTA / (rate[:, None] * target))[0]


def test_the_share_of_agreeing_orders_counts_what_it_says():
    # one mode has one order
    assert corollary_2.shares_of_agreement(jax.random.key(0), 100, 1) == (1.0, 1.0)


@pytest.mark.parametrize("inputs", [[1.0, 0.05], [1.0, 0.2], [1.0, 0.21], [0.5, 1.0]])
def test_a_learned_mode_tilts_exactly_where_the_next_has_more_gain(inputs):
    target, inputs = np.array([1.0, 0.45]), np.array(inputs)
    gain = target**2 / inputs
    assert (_departure.tilting_rate(target, inputs) > 0) == (gain[1] > gain[0])


def test_training_without_coupling_is_the_closed_form():
    target, inputs = np.array([1.0, 0.45]), np.array([0.5, 1.0])
    t = np.linspace(0.5, 3, 6)
    found = _departure.departure(
        jax.random.key(2), target, inputs, jnp.zeros((2, 2)), [0.0], [3.0], t
    )
    assert found.product.shape == (1, 6)
    assert max(found.product.max(), found.layers.max()) < 1e-10
