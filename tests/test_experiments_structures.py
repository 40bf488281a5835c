"""The experiments on structured layers: each runs at quick scale and finds what is known."""

import csv
import importlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import alignjax as aj
from alignjax import datasets
from alignjax.structures import Conv2d
from benchmarks import structures as benchmark
from experiments.alignment import _structured, figure_2b
from experiments.context import Context
from tests.audits import run

# experiment: claims refuted, claims that quick scale does not measure
EXPERIMENTS = {
    "figure_2a": (set(), set()),
    "figure_2b": ({"default start"}, {"loss, raw taps", "loss, orthonormal"}),
    "theorem_2": ({"conv2d_raw"}, set()),
    "digits_alignment": (set(), {"unaligned", "probe", "scalars"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_claims_come_out_as_known_and_everything_is_written(name, tmp_path, mnist_dir):
    module = importlib.import_module(f"experiments.alignment.{name}")
    context = run(getattr(module, name), tmp_path)
    refuted, absent = EXPERIMENTS[name]
    assert not [claim.id for claim in context.claims if claim.surprising]
    assert {c.id for c in context.claims if c.verdict == "refuted"} == refuted
    assert {c.id for c in context.claims if c.verdict == "not measured"} == absent
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert (tmp_path / f"{name}.pdf").exists()
    for table in context.tables:
        lines = [
            x for x in (tmp_path / f"{table.name}.csv").read_text().splitlines() if x[0] != "#"
        ]
        assert len(list(csv.DictReader(lines))) == table.rows > 0
    assert context.tables


def test_the_loss_on_another_image_says_nothing_of_the_figure(tmp_path):
    ended = figure_2b.Run(np.array([0, 9]), np.array([1.0, 5e-5]), *[np.zeros(2)] * 3, taps=())
    verdicts = {}
    for images in ("MNIST", "digits stand in for MNIST"):
        context = Context("alignment/figure_2b", folder=tmp_path)
        figure_2b._claim_loss(context, "raw taps", ended, images)
        verdicts[images] = context.claims[0].verdict
    assert list(verdicts.values()) == ["confirmed", "not measured"]


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_aligned_starts_are_aligned_and_no_multiples_of_the_identity(padding):
    structure = Conv2d(6, 3, padding=padding, coordinates="raw")
    starts = jax.vmap(_structured.aligned_start)(jax.random.split(jax.random.key(0), 5))
    plain, directional = _structured.misalignment(structure, starts)
    assert plain.max() < 1e-14
    assert directional.max() < 1e-13
    assert _structured.off_centre(structure, starts).min() > 0.1


def test_default_starts_have_the_scale_of_frameworks_and_are_not_aligned():
    starts = jax.vmap(_structured.default_start)(jax.random.split(jax.random.key(1), 200))
    taps = np.stack(starts)
    assert np.abs(taps).max() < 1 / 3
    np.testing.assert_allclose(taps.var(), 1 / 27, rtol=0.05)
    plain, _ = _structured.misalignment(Conv2d(6, 3, coordinates="raw"), starts)
    assert plain.min() > 1e-4


def test_misalignment_without_scalars_does_not_see_how_near_to_scalars_the_layers_are():
    structure = Conv2d(6, 3, coordinates="raw")
    taps = _structured.default_start(jax.random.key(2))
    centre = jnp.zeros(9).at[4].set(1.0)
    near = tuple(jnp.stack([centre + share * c for share in (1e-2, 1e-3)]) for c in taps)
    plain, directional = _structured.misalignment(structure, near)
    assert plain[0] / plain[1] > 50
    np.testing.assert_allclose(directional[0], directional[1], rtol=0.1)
    identity = tuple(centre[None] for _ in taps)
    for found in _structured.misalignment(structure, identity):
        assert found[0] == 0


def test_misalignment_is_alignment_of_the_worst_pair():
    structure = Conv2d(5, 3, coordinates="raw")
    taps = _structured.default_start(jax.random.key(3))
    expected = 1 - aj.metrics.alignment(aj.structures.matrices(structure, taps)).min()
    found, _ = _structured.misalignment(structure, tuple(c[None] for c in taps))
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


@pytest.mark.parametrize("coordinates", ["raw", "orthonormal"])
def test_off_centre_is_the_distance_from_multiples_of_the_identity(coordinates):
    structure = Conv2d(5, 3, coordinates=coordinates)
    taps = _structured.default_start(jax.random.key(4))
    weights = aj.structures.matrices(structure, taps)
    expected = max(
        float(jnp.linalg.norm(w - jnp.trace(w) / 25 * jnp.eye(25)) / jnp.linalg.norm(w))
        for w in weights
    )
    found = _structured.off_centre(structure, tuple(c[None] for c in taps))
    np.testing.assert_allclose(found[0], expected, rtol=1e-12)


def test_the_loss_is_the_mean_over_images_and_pixels_and_other_images_are_named(monkeypatch):
    monkeypatch.setattr(datasets, "mnist_or_digits", datasets.digits)
    rows, name = _structured.image_rows(3, shrink=1)
    assert "stand in for MNIST" in name
    assert _structured.image_size(rows) == 8
    structure = Conv2d(8, 3, coordinates="raw")
    taps = _structured.default_start(jax.random.key(5))
    problem = aj.autoencoding(jnp.asarray(rows))
    run = aj.gradient_descent(problem, taps, 0.0, steps=0, structure=structure)
    errors = aj.structures.forward(structure, taps, rows) - rows
    loss = _structured.loss_per_risk(rows) * run.observations["risk"][0]
    np.testing.assert_allclose(loss, (errors**2).mean(), rtol=1e-12)


def test_blocks_of_pixels_are_averaged():
    rows = np.arange(32.0).reshape(2, 16)
    np.testing.assert_array_equal(_structured.block_means(rows, 2)[0], [2.5, 4.5, 10.5, 12.5])


def test_benchmark_peers_train_alike_and_say_what_grows():
    rows = benchmark.run(repeats=1, steps={6: 3, 12: 3})
    differences = {row.contender: row.difference for row in rows if row.difference is not None}
    assert differences[benchmark.PLAIN] < 1e-5
    if importlib.util.find_spec("torch"):
        assert differences[benchmark.TORCH] < 1e-5
    notes = [row.note for row in rows if row.contender == benchmark.OURS]
    assert "bytes of scratch" in notes[0]
    assert "memory ~ pixels^" in notes[1]


def test_the_exponent_of_a_power_of_the_pixels_is_that_power():
    sizes = (10, 20, 40)
    assert np.isclose(benchmark.exponent(sizes, [3.0 * s**2 for s in sizes]), 1)
