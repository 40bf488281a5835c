"""Figures 1 and 2 of sequential learning and PCA by an autoencoder, at their smallest scale."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

import alignjax as aj
from alignjax import datasets
from benchmarks import staircase
from experiments.sequential import _autoencoder, pca
from experiments.sequential.figure_1 import TARGET, crossing, figure_1, squared_norm
from experiments.sequential.figure_2 import figure_2
from tests.audits import run


def refuted(context):
    assert not [claim.id for claim in context.claims if claim.surprising]
    return {claim.id for claim in context.claims if claim.verdict == "refuted"}


def rows(context, name):
    with open(context.folder / f"{name}.csv") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_figure_1_refutes_the_printed_start_and_integers_without_an_autoencoder(tmp_path):
    context = run(figure_1, tmp_path)
    assert refuted(context) == {"transition_1", "integer_white"}
    last = rows(context, "staircase")[-1]
    for depth in (1, 2):
        assert float(last[f"autoencoder: L = {depth}, delta = 100"]) == pytest.approx(3, rel=1e-4)
    assert (tmp_path / "figure_1.png").stat().st_size > 0


def test_figure_2_refutes_the_printed_error_and_any_gain_at_the_printed_noise(tmp_path):
    context = run(figure_2, tmp_path)
    assert refuted(context) == {
        "steps_fixed_1",
        "steps_redrawn_1",
        "printed_error",
        "generalization_0.001",
    }
    norms = [float(row["L = 2: nuclear"]) for row in rows(context, "paths")]
    assert norms[0] < 1e-6
    assert norms[-1] == pytest.approx(5, abs=1e-3)
    assert (tmp_path / "figure_2.pdf").stat().st_size > 0


def test_pca_of_mnist_is_recovered_and_the_transposes_are_not_kept(tmp_path, mnist_dir):
    context = run(pca.pca, tmp_path)
    assert "stand in" not in context.notes[0]
    assert refuted(context) == {"asymmetry"}
    components = rows(context, "components")
    variances = [float(row["variance (eigenvalue of X^T X / n)"]) for row in components]
    assert variances == sorted(variances, reverse=True)
    assert (tmp_path / "images.png").stat().st_size > 0


def test_pca_says_which_images_stand_in_for_mnist(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(datasets, "mnist_or_digits", datasets.digits)
    # At this scale, and from its first start, a hidden direction first learns the tenth component.
    context = run(pca.pca, tmp_path, "standard")
    assert "stand in for MNIST" in context.notes[0]
    assert refuted(context) == {"asymmetry"}


def test_the_staircase_of_one_delta_is_a_row_of_the_staircases_of_many():
    times, deltas = np.geomspace(1, 1e4, 7), np.array([2.0, 5.0])
    many = squared_norm(times, deltas, TARGET, TARGET, depth=2)
    one = squared_norm(times, 5.0, TARGET, TARGET, depth=2)
    assert many.shape == (2, 7)
    np.testing.assert_allclose(many[1], one, rtol=1e-14)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_crossing_inverts_the_logistic_course_of_an_autoencoders_mode(share):
    start = np.exp(-10.0)
    expected = np.log(share * (1 - start) / (start * (1 - share))) / (2 * TARGET)
    np.testing.assert_allclose(crossing(start, TARGET, TARGET, share), expected, rtol=1e-13)


def test_projectors_and_distances_agree_with_the_matrices():
    key = jax.random.key(0)
    moment = jnp.cov(jax.random.normal(key, (5, 40)))
    values, vectors = _autoencoder.principal_components(moment)
    projectors = _autoencoder.leading_projectors(vectors, 3)
    assert bool((jnp.diff(values) <= 0).all())
    np.testing.assert_allclose(projectors[2], vectors[:, :3] @ vectors[:, :3].T, atol=1e-14)
    weights = _autoencoder.symmetric_start(key, 5, 2, 0.0)
    direct = _autoencoder.distances(aj.end_to_end(weights)[None], projectors)
    np.testing.assert_allclose(
        pca.distances([w[None] for w in weights], np.asarray(vectors[:, :3])), direct, rtol=1e-12
    )


def test_modes_start_from_what_the_hidden_directions_of_earlier_modes_leave():
    components = np.eye(4)[:, :2]
    inner = np.array([[3.0, 4.0, 9.0, 9.0], [0.0, 2.0, 9.0, 9.0]])
    np.testing.assert_allclose(pca.effective_starts(inner, components), [9, 4], rtol=1e-14)


def test_settling_rate_is_the_slowest_of_the_rotation_near_the_projector():
    kept, left = 1.5, 1.2
    rates = np.linalg.eigvalsh([[left, -left], [-left, kept]])
    assert pca.settling_rate(kept, left) == pytest.approx(rates[0], rel=1e-12)


def test_expected_error_is_the_mean_over_new_samples():
    mix_key, sample_key, noise_key, product_key = jax.random.split(jax.random.key(1), 4)
    mixing = jax.random.normal(mix_key, (3, 2))
    product, noise, n = jax.random.normal(product_key, (3, 3)), 0.5, 400_000
    clean = jax.random.normal(sample_key, (n, 2)) @ mixing.T
    seen = clean + noise * jax.random.normal(noise_key, (n, 3))
    mean = jnp.sum((seen @ product.T - clean) ** 2) / jnp.sum(clean**2)
    exact = _autoencoder.expected_error(product, mixing @ mixing.T, noise)
    np.testing.assert_allclose(exact, mean, rtol=0.02)


def test_the_benchmarks_peer_draws_the_same_staircases():
    found = staircase.run(repeats=1, runs=5, times=4)
    assert found[1].contender == staircase.PEER
    assert found[1].difference < 1e-4
