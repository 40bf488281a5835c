"""Figure 2: AlexNet as the paper has it, trainings that can be interrupted, and honest claims."""

import csv
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from alignjax import datasets
from experiments.context import Context
from experiments.max_margin import _alexnet_checkpoint as checkpoints
from experiments.max_margin import figure_2 as module
from experiments.max_margin._alexnet import AlexNet, dense_weights, pool, risk, with_equal_norms
from experiments.max_margin._alexnet_training import (
    Data,
    Settings,
    State,
    check_memory,
    needed_beyond_arguments,
    observe,
    run_epoch,
    start,
    take_step,
    train,
)
from experiments.max_margin.figure_2 import (
    FULL,
    OWN,
    QUICK,
    STANDARD,
    choose_size,
    figure_2,
    size_for,
)
from tests import audits

SETTINGS = Settings("default", seed=3, epochs=3, batch_size=8, learning_rate=0.05)


@eqx.filter_jit
def narrow(key):
    """The same network with few channels and units."""
    return AlexNet(key, channels=(3, 4, 6, 6, 6, 8), dense_widths=(32, 24, 16, 10))


def images(count=20, name="noise"):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return datasets.Images(pixels, random.integers(0, 10, count, np.uint8), name, "a test")


@pytest.fixture(scope="module")
def data():
    return Data.of(images())


def arrays(state):
    return jax.tree.leaves(eqx.filter(state, eqx.is_array))


def test_the_dense_layers_have_the_shapes_of_the_paper():
    network = eqx.filter_eval_shape(AlexNet, jax.random.key(0))
    assert [w.shape for w in dense_weights(network)] == [(4096, 1024), (4096, 4096), (10, 4096)]
    image = jax.ShapeDtypeStruct((3, 32, 32), jnp.float32)
    assert eqx.filter_eval_shape(network, image).shape == (10,)
    # switched to float64, the library leaves this network in float32
    assert {x.dtype for x in jax.tree.leaves(network)} == {np.dtype(np.float32)}
    assert eqx.filter_eval_shape(network, image).dtype == jnp.float32


def test_a_first_dense_layer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"dense_widths\[0\]: expected 32, got 30"):
        AlexNet(jax.random.key(0), channels=(3, 4, 6, 6, 6, 8), dense_widths=(30, 10))


def test_the_default_start_is_that_of_pytorch():
    network = narrow(jax.random.key(1))
    for layer in (*network.convolutions, *network.dense):
        bound = layer.weight[0].size ** -0.5
        for values in (layer.weight, layer.bias):
            assert float(jnp.abs(values).max()) <= bound
        if layer.weight.size > 300:
            assert float(layer.weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_equal_norms_change_the_dense_weights_alone():
    before = narrow(jax.random.key(1))
    after = with_equal_norms(before, jax.random.key(2))
    for w in dense_weights(after):
        assert float(jnp.linalg.norm(w)) == pytest.approx(4.0, rel=1e-6)
    unchanged = eqx.tree_at(dense_weights, after, dense_weights(before))
    assert eqx.tree_equal(unchanged, before)


def test_pooling_takes_the_largest_of_each_block():
    x = jax.random.normal(jax.random.key(3), (2, 6, 4))
    np.testing.assert_array_equal(pool(x), eqx.nn.MaxPool2d(2, 2)(x))


def test_each_colour_is_standardized():
    found = Data.of(images(12))
    np.testing.assert_allclose(found.images.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.images.std((0, 2, 3)), 1, rtol=1e-5)
    assert found.images.dtype == jnp.float32
    assert Data.of(images(12)).digest == found.digest != Data.of(images(11)).digest


def test_a_step_descends_along_the_gradient_and_its_momentum(data):
    state, batch = start(SETTINGS, narrow), jnp.arange(8)
    gradient_of = jax.jit(jax.grad(risk))
    before, optimizer, velocity = state.network, state.optimizer, None
    for _ in range(2):
        after, optimizer = take_step(
            before, optimizer, data.images, data.labels, batch, 0.05, settings=SETTINGS
        )
        gradient = gradient_of(before, data.images[:8], data.labels[:8])
        moved = jax.tree.map(lambda a, b: (a - b) / 0.05, before, after)
        if velocity is not None:
            gradient = jax.tree.map(lambda g, v: g + 0.9 * v, gradient, velocity)
        for found, expected in zip(arrays(moved), arrays(gradient), strict=True):
            np.testing.assert_allclose(found, expected, atol=3e-6)
        before, velocity = after, gradient


def test_each_epoch_has_an_order_of_its_own(data):
    state = start(SETTINGS, narrow)
    first, again, other = (run_epoch(state, SETTINGS, data, epoch).network for epoch in (0, 0, 1))
    assert eqx.tree_equal(first, again)
    assert not eqx.tree_equal(first, other)


def test_the_first_epochs_have_their_own_learning_rate(data):
    settings = dataclasses.replace(SETTINGS, first_epochs=2, first_learning_rate=0.1)
    assert [settings.learning_rate_of(epoch) for epoch in range(4)] == [0.1, 0.1, 0.05, 0.05]
    begin = start(settings, narrow)
    # the momentum of the first step is the gradient
    one = Data(data.images[:8], data.labels[:8], data.digest)
    moved = [
        jax.tree.map(jnp.subtract, run_epoch(begin, settings, one, epoch).network, begin.network)
        for epoch in (1, 2)
    ]
    for fast, slow in zip(arrays(moved[0]), arrays(moved[1]), strict=True):
        np.testing.assert_allclose(fast, 2 * slow, atol=3e-6)


def test_what_is_observed_is_the_risk_and_the_ratios_of_the_svd(data):
    state = observe(start(SETTINGS, narrow), data, 300)
    assert int(state.epoch) == 0
    assert state.risks[0] == pytest.approx(float(risk(state.network, data.images, data.labels)))
    for i, w in enumerate(dense_weights(state.network)):
        values = np.linalg.svd(np.asarray(w), compute_uv=False)
        norm = np.sqrt((values**2).sum())
        assert state.norms[0, i] == pytest.approx(norm, rel=1e-6)
        assert state.ratios[0, i] == pytest.approx(values[0] / norm, rel=1e-5)
    assert np.isnan(state.risks[1:]).all()


class Stopped(Exception):
    pass


def stop_after(epochs, seen):
    def track(iterator):
        for count, epoch in enumerate(iterator):
            if count == epochs:
                raise Stopped
            seen.append(epoch)
            yield epoch

    return track


@pytest.mark.parametrize("kind", ["default", "equal norms"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, data, kind):
    settings = Settings(kind, seed=3, epochs=3, batch_size=8, learning_rate=0.05)
    whole, _ = train(settings, data, folder=tmp_path / "whole", make=narrow)
    assert np.isfinite(whole.risks).all()
    assert np.isfinite(whole.ratios).all()
    seen = []
    for epochs in (1, 1, 5):
        try:
            resumed, path = train(
                settings, data, folder=tmp_path, track=stop_after(epochs, seen), make=narrow
            )
        except Stopped:
            continue
    # no epoch is done twice
    assert seen == [0, 1, 2]
    assert eqx.tree_equal(resumed, whole)
    # one that is done only reads its checkpoint
    again, _ = train(settings, data, folder=tmp_path, track=stop_after(0, seen), make=narrow)
    assert eqx.tree_equal(again, whole)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]
    checkpoints.discard(path)
    assert not path.exists()


def test_a_checkpoint_of_another_configuration_is_never_resumed(tmp_path):
    config = {"seed": 1, "epochs": 3}
    state = {"w": jnp.arange(3.0)}
    path = checkpoints.path_of(tmp_path / "new", "default", config)
    checkpoints.save(path, config, state)
    assert eqx.tree_equal(checkpoints.load(path, config, {"w": jnp.zeros(3)}), state)
    other = {"seed": 2, "epochs": 3}
    assert checkpoints.path_of(tmp_path / "new", "default", other) != path
    with pytest.raises(checkpoints.CheckpointError, match=r"another training: seed = 1, not 2;"):
        checkpoints.load(path, other, state)
    with pytest.raises(checkpoints.CheckpointError, match="is damaged"):
        checkpoints.load(path, config, {"w": jnp.zeros(4)})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(checkpoints.CheckpointError, match="is damaged"):
        checkpoints.load(path, config, state)
    path.write_bytes(b"\xff\n")
    with pytest.raises(checkpoints.CheckpointError, match="is no checkpoint; delete it"):
        checkpoints.load(path, config, state)
    checkpoints.discard(path)
    assert checkpoints.load(path, config, state) is None
    # the folder goes with the last of its checkpoints
    assert not path.parent.exists()


def test_a_risk_that_is_not_finite_stops_a_training_and_is_not_saved(tmp_path, data):
    wild = Settings("default", seed=0, epochs=2, batch_size=8, learning_rate=1e20)
    with pytest.raises(FloatingPointError, match="the risk diverged in epoch 1"):
        train(wild, data, folder=tmp_path, make=narrow)
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_data_is_refused(tmp_path, data):
    large = Settings("default", seed=0, epochs=1, batch_size=21, learning_rate=0.1)
    with pytest.raises(ValueError, match="batch_size: expected at most the 20 images, got 21"):
        train(large, data, folder=tmp_path, make=narrow)


def test_too_little_memory_is_told_before_a_training_begins(tmp_path, data, monkeypatch):
    class Device:
        device_kind = "small"

        def memory_stats(self):
            return {"bytes_limit": 5_000, "bytes_in_use": 1_000}

    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((10, 10))).compile()
    assert needed_beyond_arguments(compiled) >= 800
    check_memory(1_000, 1_000)
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with pytest.raises(MemoryError, match=r"needs .* GB .* 0\.00 GB are free"):
        train(SETTINGS, data, folder=tmp_path, make=narrow)
    assert not list(tmp_path.iterdir())


def test_the_scale_of_the_paper_needs_a_gpu(monkeypatch):
    assert choose_size("quick")[0] is QUICK
    assert choose_size("standard")[0] is STANDARD
    size, reason = choose_size("full")
    assert size is STANDARD
    assert "no GPU" in reason
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_size("full") == (FULL, "")
    assert (FULL.images, FULL.epochs) == (50_000, 100)
    # only the smaller scale needs a schedule of its own, and only from one start
    assert size_for("equal norms", FULL) is FULL
    assert size_for("default", STANDARD) is STANDARD
    own = size_for("equal norms", STANDARD)
    assert (own.images, own.epochs) == (STANDARD.images, STANDARD.epochs)
    assert own.settings("equal norms", 3).learning_rate_of(0) == own.first_learning_rate


def run(folder, scale="quick"):
    folder.mkdir()
    return audits.run(figure_2, folder, scale)


def verdicts(context):
    return {claim.id: claim.verdict for claim in context.claims}


def check_quick(context):
    assert not [claim for claim in context.claims if claim.surprising]
    found = verdicts(context)
    assert found.pop("tracker") == "confirmed"
    assert len(found) == 12
    assert set(found.values()) == {"not measured"}
    assert "64 test images" in context.notes[0]
    assert (context.folder / "figure_2.png").stat().st_size > 10_000
    with open(context.folder / "figure_2.csv", encoding="utf-8") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["epoch"] for row in rows] == 2 * ["0", "1", "2"]
    assert all(0 < float(row["||W_2||_2/||W_2||_F"]) < 1 for row in rows)
    assert not (context.folder.parent / "checkpoints").exists()


def test_a_few_images_draw_the_figure_and_claim_nothing(tmp_path, monkeypatch):
    def train_narrow(*arguments, **options):
        return train(*arguments, **options, make=narrow)

    monkeypatch.setattr(module, "train", train_narrow)
    monkeypatch.setattr(datasets, "cifar10", lambda split: images(80))
    check_quick(run(tmp_path / "run"))


@pytest.mark.slow
def test_the_whole_network_makes_a_few_steps(tmp_path, cifar10_dir):
    check_quick(run(tmp_path / "run"))


def test_without_data_it_runs_and_says_so(tmp_path, monkeypatch):
    def unavailable(split):
        raise datasets.DataUnavailableError("no such data")

    monkeypatch.setattr(datasets, "cifar10", unavailable)
    context = run(tmp_path / "run", "standard")
    assert len(context.claims) == 13
    assert set(verdicts(context).values()) == {"not measured"}
    assert {claim.reason for claim in context.claims} == {
        "CIFAR-10 is not available on this machine"
    }
    assert not list(context.folder.iterdir())


def test_claims_follow_what_is_measured(tmp_path):
    epochs = np.linspace(0, 1, 5)
    bounds = module.BOUNDS

    def verdicts_of(risks, ratios):
        context = Context(figure_2.name, folder=tmp_path)
        state = State(None, None, None, np.array(4), risks, ratios, ratios)
        module._claim(context, {"default": state}, OWN, STANDARD)
        return {id.split("_")[1]: verdict for id, verdict in verdicts(context).items()}

    names = ("rise", "growth", "bound")
    falling = 2.3 * np.exp(-5 * epochs)
    ratios = np.outer(1 + epochs, 1.2 * bounds)
    assert verdicts_of(falling, ratios) == dict.fromkeys(names, "confirmed")
    assert verdicts_of(falling, ratios[::-1] / 2) == dict.fromkeys(names, "refuted")
    # without a risk that falls there is nothing to say
    assert verdicts_of(2.3 - 1e-3 * epochs, ratios) == dict.fromkeys(names, "not measured")
    # one layer that stays behind is enough
    ratios[:, 1] = ratios[0, 1] * (1 - 1e-3 * epochs)
    behind = verdicts_of(falling, ratios)
    assert behind["rise"] == behind["growth"] == behind["bound"] == "refuted"
