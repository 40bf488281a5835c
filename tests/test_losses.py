"""Losses of one sample: values, derivatives by hand, constants, behaviour far out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj

SCALES = (1e-3, 1.0, 30.0)
LOSSES = [aj.losses.squared, aj.losses.logistic, aj.losses.exponential, aj.losses.cross_entropy]


def samples(loss, scale):
    rng = np.random.default_rng(0)
    width = 1 if loss.targets == "signs" else 4
    z = jnp.asarray(scale * rng.normal(size=(20, width)))
    if loss.targets == "signs":
        return z, jnp.asarray(np.sign(rng.normal(size=20)))
    if loss.targets == "classes":
        return z, jnp.asarray(rng.integers(0, width, size=20))
    return z, jnp.asarray(rng.normal(size=(20, width)))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_derivatives_by_hand_equal_autodiff(loss, scale):
    z, y = samples(loss, scale)
    expected = jax.vmap(jax.grad(loss.value))(z, y)
    np.testing.assert_allclose(loss.derivatives(z, y), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_logarithms_equal_the_logarithm_of_the_value(loss):
    z, y = samples(loss, 1.0)
    np.testing.assert_allclose(loss.log_values(z, y), np.log(loss.values(z, y)), rtol=1e-12)


def test_values_are_the_textbook_formulas():
    z, y = jnp.array([0.3, -1.2, 2.0]), 2
    plain = np.log(np.exp(z).sum()) - z[2]
    np.testing.assert_allclose(aj.losses.cross_entropy.value(z, y), plain, rtol=1e-14)
    margin = jnp.array([0.7])
    np.testing.assert_allclose(
        aj.losses.logistic.value(margin, -1.0), np.log1p(np.exp(0.7)), rtol=1e-14
    )
    np.testing.assert_allclose(aj.losses.exponential.value(margin, -1.0), np.exp(0.7), rtol=1e-14)
    np.testing.assert_allclose(aj.losses.squared.value(z, jnp.ones(3)), 0.5 * ((z - 1) ** 2).sum())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_smoothness_and_lipschitz_constants_bound_the_derivatives(loss):
    z, y = samples(loss, 1.0)
    z = z.at[0].set(0.0)
    curvature = jax.vmap(lambda z, y: jnp.linalg.norm(jax.hessian(loss.value)(z, y), 2))(z, y)
    slope = jnp.linalg.norm(loss.derivatives(z, y), axis=1)
    if loss.smoothness is not None:
        assert float(curvature.max()) <= loss.smoothness * (1 + 1e-12)
    if loss.lipschitz is not None:
        assert float(slope.max()) <= loss.lipschitz * (1 + 1e-12)


def test_the_constants_are_attained():
    at_zero = jax.hessian(aj.losses.logistic.value)(jnp.zeros(1), 1.0)
    np.testing.assert_allclose(at_zero, [[aj.losses.logistic.smoothness]], rtol=1e-14)
    tie = jax.hessian(aj.losses.cross_entropy.value)(jnp.zeros(2), 0)
    np.testing.assert_allclose(
        jnp.linalg.norm(tie, 2), aj.losses.cross_entropy.smoothness, rtol=1e-14
    )
    wrong = aj.losses.cross_entropy.derivatives(jnp.array([[-400.0, 400.0]]), jnp.array([0]))
    np.testing.assert_allclose(jnp.linalg.norm(wrong), aj.losses.cross_entropy.lipschitz)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "loss", [aj.losses.logistic, aj.losses.cross_entropy], ids=lambda x: x.name
)
def test_confident_outputs_lose_no_precision_and_wrong_ones_do_not_overflow(loss, dtype):
    signs = loss.targets == "signs"
    y = jnp.array([1.0] if signs else [0], dtype if signs else jnp.int32)

    def outputs(margin):
        return jnp.array([[margin]] if signs else [[margin, 0.0]], dtype)

    tiny = 1e-13 if dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(loss.values(outputs(60.0), y), [np.exp(-60.0)], rtol=tiny)
    slope = loss.derivatives(outputs(60.0), y)[0]
    np.testing.assert_allclose(slope[0], -np.exp(-60.0), rtol=tiny)
    np.testing.assert_allclose(loss.log_values(outputs(5e3), y), [-5e3], rtol=tiny)
    np.testing.assert_allclose(loss.values(outputs(-5e3), y), [5e3], rtol=tiny)
    assert bool(jnp.isfinite(loss.derivatives(outputs(-5e3), y)).all())


def test_names_losses_and_callables_are_losses():
    assert aj.losses.as_loss("logistic") is aj.losses.logistic
    assert aj.losses.as_loss(aj.losses.squared) is aj.losses.squared

    def absolute(z, y):
        return jnp.abs(z - y).sum()

    custom = aj.losses.as_loss(absolute)
    assert custom.name == "absolute"
    z, y = jnp.array([[1.0, -2.0]]), jnp.array([[0.0, 0.0]])
    np.testing.assert_allclose(custom.values(z, y), [3.0])
    np.testing.assert_allclose(custom.derivatives(z, y), [[1.0, -1.0]])
