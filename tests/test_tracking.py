"""The tracker's ratios are those of the singular value decomposition, in any pytree of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.metrics import SpectralTracker, spectral_ratio

DTYPES = {jnp.float32: 1e-6, jnp.float64: 1e-13}
SHAPES = {"wide": (7, 30), "tall": (30, 7), "row": (1, 9), "column": (9, 1), "single": (1, 1)}


def matrix(seed, shape, dtype=jnp.float64, values=None):
    """A random matrix, with given singular values where there are any."""
    draw = jax.random.normal(jax.random.key(seed), shape, dtype)
    if values is None:
        return draw
    u, _, vt = jnp.linalg.svd(draw, full_matrices=False)
    return (u * jnp.asarray(values, dtype)) @ vt


def exact(w):
    w = np.asarray(w, np.float64)
    values = np.linalg.svd(w / np.abs(w).max(), compute_uv=False)
    return values[0] / np.sqrt((values**2).sum())


def measure(tree, iterations=400):
    def first_call(tree):
        return SpectralTracker.init(tree).update(tree, iterations=iterations)[0]

    return jax.jit(first_call)(tree)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_iterations_give_the_ratio_of_the_svd(dtype):
    layers = {name: matrix(1, shape, dtype) for name, shape in SHAPES.items()}
    found = measure(layers)
    for name, w in layers.items():
        value = found[f"['{name}']"]
        assert value.dtype == dtype
        assert value.shape == ()
        assert float(value) == pytest.approx(exact(w), rel=DTYPES[dtype])
        assert float(value) == pytest.approx(float(spectral_ratio((w,))[0]), rel=DTYPES[dtype])


def test_an_estimate_is_never_above_the_ratio_and_falls_short_by_no_more_than_documented():
    shape, draws = (20, 40), 200
    stack = jax.random.normal(jax.random.key(2), (draws, *shape), jnp.float32)
    ratios = np.array([exact(w) for w in stack])
    tracker = jax.vmap(SpectralTracker.init)(stack)
    for iterations in (2, 16):
        found, _ = jax.vmap(lambda t, w, k=iterations: t.update(w, iterations=k))(tracker, stack)
        short = 1 - np.asarray(found[""], np.float64) / ratios
        assert short.min() > -DTYPES[jnp.float32]
        assert (1 - (1 - short) ** 2).mean() < 0.871 * np.log(shape[1]) / iterations
    assert np.median(short) < 1e-3


def test_the_error_falls_as_the_gap_says():
    values = np.array([1.0, 0.8, 0.5, 0.1])
    w = matrix(3, (4, 6), values=values)
    top = jnp.linalg.svd(w)[2][0]
    tracker = SpectralTracker.init({"w": w})
    update = jax.jit(SpectralTracker.update, static_argnames="iterations")
    for iterations in (4, 8, 16):
        ratios, after = update(tracker, {"w": w}, iterations=iterations)
        # a zero layer leaves the start as it is, with its fresh share, which the bound speaks of
        before = update(tracker, {"w": jnp.zeros_like(w)}, iterations=1)[1].vectors["['w']"]
        cosine = abs(float(before @ top))
        bound = (0.8 / 1.0) ** (4 * iterations) * (1 / cosine**2 - 1) / 2
        short = 1 - float(ratios["['w']"]) / exact(w)
        assert -1e-14 < short <= bound
        assert float(jnp.linalg.norm(after.vectors["['w']"])) == pytest.approx(1, rel=1e-13)


def test_calls_go_on_where_the_last_one_ended():
    w = matrix(4, (60, 60))
    update = jax.jit(SpectralTracker.update)
    tracker, short = SpectralTracker.init({"w": w}), []
    for _ in range(30):
        ratios, tracker = update(tracker, {"w": w})
        short.append(1 - float(ratios["['w']"]) / exact(w))
    assert int(tracker.calls) == 30
    assert short[0] > 1e-3
    # what the fresh share of a random vector may cost for ever, at 8 iterations
    assert short[-1] < 1e-5 / 8


def test_a_layer_that_changes_slowly_is_followed_by_few_iterations():
    start, drift = matrix(5, (40, 50)), matrix(6, (40, 50))
    path = jnp.stack([start + 0.02 * i * drift for i in range(60)])

    def follow(tracker, w):
        ratios, tracker = tracker.update(w, iterations=3)
        return tracker, ratios[""]

    first = SpectralTracker.init(start).update(start, iterations=200)[1]
    _, found = jax.lax.scan(follow, first, path)
    ratios = np.array([exact(w) for w in path])
    assert (np.asarray(found) <= ratios * (1 + 1e-13)).all()
    np.testing.assert_allclose(found, ratios, rtol=2e-3)


def test_another_singular_vector_that_takes_over_is_found():
    w = jnp.diag(jnp.array([2.0, 1.0, 0.5]))
    tracker = SpectralTracker.init({"w": w}).update({"w": w}, iterations=300)[1]
    turned = jnp.diag(jnp.array([1.0, 2.0, 0.5]))
    for _ in range(3):
        ratios, tracker = tracker.update({"w": turned})
    assert float(ratios["['w']"]) == pytest.approx(exact(turned), rel=1e-6)
    # the vector in use is in the kernel
    gone = jnp.diag(jnp.array([1.0, 0.0, 0.0]))
    ratios, _ = tracker.update({"w": gone})
    assert float(ratios["['w']"]) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("tied", [2, 5])
def test_singular_values_that_tie_do_no_harm(tied):
    values = np.where(np.arange(5) < tied, 3.0, 0.3)
    w = matrix(7, (5, 8), values=values)
    assert float(measure((w,), 10)["[0]"]) == pytest.approx(exact(w), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_does_not_matter(dtype):
    w = matrix(8, (6, 9), dtype)
    largest = float(jnp.abs(w).max())
    info = jnp.finfo(dtype)
    # up to the largest float, whose reciprocal is too small to divide by
    scales = (1.0, float(info.tiny) * 1e8, float(info.max) / 8, float(info.max) * 0.999)
    layers = [(w / largest) * scale for scale in scales]
    found = measure(layers)
    np.testing.assert_allclose(list(found.values()), exact(w), rtol=20 * DTYPES[dtype])
    by_svd = jnp.concatenate([spectral_ratio((layer,)) for layer in layers])
    np.testing.assert_allclose(by_svd, exact(w), rtol=20 * DTYPES[dtype])


def test_rank_one_and_zero_layers_have_ratio_one():
    found = measure({"one": jnp.outer(jnp.arange(1.0, 5), jnp.ones(3)), "zero": jnp.zeros((4, 3))})
    assert float(found["['one']"]) == pytest.approx(1.0, rel=1e-14)
    assert float(found["['zero']"]) == 1.0


def test_a_layer_that_is_not_finite_gives_nan_and_is_followed_again_once_it_is():
    w = matrix(9, (6, 6))
    tracker = SpectralTracker.init({"a": w, "b": w})
    for bad in (jnp.nan, jnp.inf):
        ratios, tracker = tracker.update({"a": w.at[0, 0].set(bad), "b": w}, iterations=200)
        assert np.isnan(ratios["['a']"])
        assert float(ratios["['b']"]) == pytest.approx(exact(w), rel=1e-12)
    ratios, _ = tracker.update({"a": w, "b": w}, iterations=200)
    assert float(ratios["['a']"]) == pytest.approx(exact(w), rel=1e-12)


def test_narrow_floats_count_as_float32():
    w = matrix(10, (6, 9)).astype(jnp.bfloat16)
    found = measure({"w": w})["['w']"]
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(exact(w.astype(jnp.float32)), rel=1e-6)


def test_the_layers_of_a_model_are_named_by_their_paths():
    tree = {
        "conv": jnp.ones((3, 3, 2, 4)),
        "dense": [
            {"kernel": matrix(11, (4, 5)), "bias": jnp.zeros(5)},
            {"kernel": np.ones((5, 2))},
        ],
        "table": jnp.ones((3, 3), jnp.int32),
        "activation": jax.nn.relu,
        "none": None,
    }
    first, second = "['dense'][0]['kernel']", "['dense'][1]['kernel']"
    assert set(SpectralTracker.init(tree).vectors) == {first, second}
    chosen = SpectralTracker.init(tree, lambda path: "[1]" in path)
    assert {path: v.shape for path, v in chosen.vectors.items()} == {second: (2,)}
    ratios, _ = chosen.update(tree)
    assert float(ratios[second]) == pytest.approx(1.0)


def test_it_follows_a_training_loop_under_jit_and_vmap():
    optimizer = optax.sgd(0.1)
    x = jax.random.normal(jax.random.key(12), (20, 4))

    def loss(params):
        return ((x @ params["a"] @ params["b"] - x[:, :2]) ** 2).mean()

    def train(params):
        def step(carry, _):
            params, state, tracker = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            params = optax.apply_updates(params, updates)
            ratios, tracker = tracker.update(params, iterations=60)
            return (params, state, tracker), ratios

        carry = (params, optimizer.init(params), SpectralTracker.init(params))
        (params, _, _), ratios = jax.lax.scan(step, carry, None, length=5)
        return params, ratios

    starts = {
        "a": jax.random.normal(jax.random.key(13), (3, 4, 6)),
        "b": jax.random.normal(jax.random.key(14), (3, 6, 2)),
    }
    params, ratios = jax.jit(jax.vmap(train))(starts)
    assert ratios["['a']"].shape == (3, 5)
    for name in "ab":
        truth = [exact(w) for w in params[name]]
        np.testing.assert_allclose(ratios[f"['{name}']"][:, -1], truth, rtol=1e-5)


def test_the_derivative_is_that_of_the_ratio():
    w = matrix(15, (4, 5), values=(2.0, 1.0, 0.5, 0.2))

    def tracked(w):
        return SpectralTracker.init(w).update(w, iterations=100)[0][""]

    def direct(w):
        return jnp.linalg.norm(w, 2) / jnp.linalg.norm(w)

    np.testing.assert_allclose(jax.grad(tracked)(w), jax.grad(direct)(w), rtol=1e-9, atol=1e-12)


def test_bad_input_is_named():
    w = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"tree: holds no matrix of floats; its leaves: \['b'\]"):
        SpectralTracker.init({"b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"tree: holds no matrix of floats; its leaves: none"):
        SpectralTracker.init(())
    with pytest.raises(ValueError, match=r"tree: no leaf is selected; .*\['w'\].*\(3, 4\)"):
        SpectralTracker.init({"w": w}, lambda path: False)
    with pytest.raises(TypeError, match="select must be callable, got str"):
        SpectralTracker.init({"w": w}, "w")
    with pytest.raises(ValueError, match=r"\['c'\] must be a matrix that is not empty.*\(3,\)"):
        SpectralTracker.init({"c": jnp.ones(3)}, lambda path: True)
    with pytest.raises(ValueError, match=r"must be a matrix that is not empty.*\(0, 3\)"):
        SpectralTracker.init({"c": jnp.ones((0, 3))}, lambda path: True)
    for leaf in (jnp.ones((2, 2), jnp.int32), jnp.ones((2, 2), complex), jax.nn.relu):
        with pytest.raises(TypeError, match=r"\['c'\] must be a matrix of real floats"):
            SpectralTracker.init({"c": leaf}, lambda path: True)
    tracker = SpectralTracker.init({"w": w})
    with pytest.raises(ValueError, match=r"tree: has no leaf \['w'\]"):
        tracker.update({"v": w})
    with pytest.raises(ValueError, match=r"\['w'\] had 4 columns at init.*\(3, 5\)"):
        tracker.update({"w": jnp.ones((3, 5))})
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        tracker.update({"w": w}, iterations=0)
    with pytest.raises(TypeError, match="iterations must be an integer"):
        tracker.update({"w": w}, iterations=2.5)
