"""Every public call under each of JAX's switches."""

import contextlib
import inspect
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj

th, S = aj.theory, aj.structures

# One small size for everything, so that calls share what is compiled.
X = np.array([[1.0, 0.2], [-0.3, 0.8], [0.5, -1.1], [0.7, 0.4]])
Y = np.array([[0.4, 1.0], [0.9, -0.2], [0.1, 0.6], [-0.5, 0.3]])
M = np.array([[1.0, 0.3], [0.2, 0.5]])
LABELS = np.array([1, -1, 1, 1])
SEPARABLE = LABELS[:, None] * np.array([[1.0, 0.5], [1.0, -0.5], [2.0, 0.1], [1.5, 0.3]])


def given():
    """What calls are given: arrays on the device, problems, weights."""
    s = SimpleNamespace(key=jax.random.key(0), X=jnp.asarray(X), Y=jnp.asarray(Y))
    s.M, s.labels = jnp.asarray(M), jnp.asarray(LABELS)
    s.rate, s.vector = jnp.asarray(0.05, s.X.dtype), jnp.asarray([0.5, 0.4], s.X.dtype)
    s.spectrum, s.ones = jnp.asarray([1.0, 0.6], s.X.dtype), jnp.ones(2, s.X.dtype)
    s.times = jnp.asarray([0.5, 1.0], s.X.dtype)
    s.problem = aj.regression(s.X, s.Y)
    s.square = aj.factorization(jnp.diag(s.spectrum))
    s.signs = aj.classification(s.X, s.labels, "exponential")
    s.classes = aj.classification(s.X, jnp.arange(4) % 2, "cross_entropy")
    s.sensing = aj.sensing(s.X.reshape(2, 2, 2), s.vector)
    s.weights = (s.M, s.M.T)
    s.one_output = (s.M / 8, s.M[:1])
    s.diagonal = tuple(jnp.diag(s.vector) for _ in range(2))
    s.reduced = aj.reduce(s.square, s.diagonal)
    narrow = (s.diagonal[0][:1], s.diagonal[1][:, :1])
    s.bottleneck = aj.reduce(s.square, narrow)
    s.certificate = th.alignment.certify(s.square)
    s.spectra = (s.spectrum, s.ones)
    s.separable = jnp.asarray(SEPARABLE)
    s.found = th.margin.max_margin(s.separable, s.labels)
    s.late = th.margin.late_times(s.separable, s.labels, s.found)
    return s


def sweep(s):
    pytest.importorskip("xarray")
    return aj.sweep(
        lambda rate: {
            "sharpness": aj.metrics.sharpness(s.problem, (rate * s.M, s.M.T)),
        },
        {"rate": np.array([0.1, 0.2])},
        progress=False,
    )


def structured(structure):
    c = lambda s: jnp.linspace(0.1, 0.2, structure.dim, dtype=s.X.dtype)  # noqa: E731

    def call(s):
        matrix = structure.project(structure.matrix(c(s)))
        outputs = structure.apply(structure.coefficients(matrix), s.X)
        return outputs, structure.raw(structure.orthonormal(c(s)))

    return call


CALLS = {
    "accumulate": lambda s: aj.accumulate([(X, Y), (X, Y)]),
    "adaptive_descent": lambda s: aj.adaptive_descent(
        s.signs, s.one_output, steps=2, rule="margin"
    ),
    "autoencoding": lambda s: aj.autoencoding(s.X),
    "classification": lambda s: aj.classification(s.X, s.labels),
    "end_to_end": lambda s: aj.end_to_end(s.weights),
    "every": lambda s: aj.every(4, 2),
    "expand": lambda s: aj.expand(s.reduced, s.reduced.singular_values),
    "factorization": lambda s: aj.factorization(s.M),
    "from_moments": lambda s: aj.from_moments(s.X.T @ s.X, s.Y.T @ s.X, 40.0),
    "gradient": lambda s: [
        aj.gradient(problem, s.weights) for problem in (s.problem, s.sensing, s.classes)
    ],
    "gradient_descent": lambda s: (
        aj.gradient_descent(s.problem, s.weights, s.rate, steps=2),
        aj.gradient_descent(s.problem, s.weights, s.vector / 9, steps=1, until=0.1, engine="xla"),
        aj.gradient_descent(
            s.sensing, (s.vector, s.vector), 0.1, steps=1, structure=S.Circulant(2)
        ),
    ),
    "gradient_flow": lambda s: aj.gradient_flow(
        s.problem, s.weights, times=s.times, solver="explicit", rtol=1e-2
    ),
    "inversion": lambda s: aj.inversion(s.M),
    "log_steps": lambda s: aj.log_steps(4, 3),
    "optimizer_descent": lambda s: (
        aj.optimizer_descent(s.problem, s.weights, optax.sgd(0.1, 0.9), steps=2),
        aj.optimizer_descent(
            s.signs, s.one_output, optax.sgd(0.1), steps=1, batch_size=2, key=s.key
        ),
    ),
    "reduce": lambda s: aj.reduce(s.square, s.diagonal),
    "reduced_descent": lambda s: (
        aj.reduced_descent(s.reduced, s.rate, steps=2),
        aj.reduced_descent(s.reduced, s.vector / 9, steps=2, engine="xla"),
    ),
    "regression": lambda s: aj.regression(s.X, s.Y),
    "risk": lambda s: aj.risk(s.problem, s.weights),
    "risk_and_gradient": lambda s: aj.risk_and_gradient(s.problem, s.weights),
    "sensing": lambda s: aj.sensing(s.X.reshape(2, 2, 2), s.vector),
    "sweep": sweep,
    "closed_forms.aligned_two_layer_flow": lambda s: aj.closed_forms.aligned_two_layer_flow(
        s.certificate, jnp.eye(2, dtype=s.X.dtype), s.vector, s.times
    ),
    "closed_forms.deep_mode_time": lambda s: aj.closed_forms.deep_mode_time(
        s.vector, s.vector / 2, s.spectrum, s.ones, depth=3
    ),
    "closed_forms.layer_update": lambda s: aj.closed_forms.layer_update(
        s.vector, s.spectrum, s.ones, s.rate
    ),
    "closed_forms.linear_descent": lambda s: aj.closed_forms.linear_descent(
        s.problem, s.M, s.rate, jnp.arange(3)
    ),
    "closed_forms.linear_flow": lambda s: aj.closed_forms.linear_flow(s.problem, s.M, s.times),
    "closed_forms.mode_descent": lambda s: aj.closed_forms.mode_descent(
        s.vector, s.spectrum, s.ones, s.rate, steps=2
    ),
    "closed_forms.mode_descent_bounds": lambda s: aj.closed_forms.mode_descent_bounds(
        s.vector, s.spectrum, s.ones, s.rate, 2
    ),
    "closed_forms.mode_flow": lambda s: aj.closed_forms.mode_flow(
        s.times, s.vector / 2, s.spectrum, s.ones, depth=3
    ),
    "closed_forms.printed_mode_descent_bounds": lambda s: (
        aj.closed_forms.printed_mode_descent_bounds(s.vector, s.spectrum, s.ones, s.rate, 2)
    ),
    "closed_forms.printed_zero_target_bound": lambda s: aj.closed_forms.printed_zero_target_bound(
        s.vector, s.ones, s.rate, 2
    ),
    "closed_forms.product_update": lambda s: aj.closed_forms.product_update(
        s.vector, s.spectrum, s.ones, s.rate
    ),
    "closed_forms.two_layer_flow": lambda s: aj.closed_forms.two_layer_flow(
        s.square, s.diagonal, s.times
    ),
    "closed_forms.zero_target_bound": lambda s: aj.closed_forms.zero_target_bound(
        s.vector, s.ones, s.rate, 2
    ),
    "datasets.aligned_regression": lambda s: aj.datasets.aligned_regression(
        s.key, [1.0, 2.0], [1.0, 0.5], n=4
    ),
    "datasets.flatten": lambda s: aj.datasets.flatten(IMAGES),
    "datasets.batches": lambda s: list(aj.datasets.batches(IMAGES, 2, classes=2)),
    "datasets.gaussian_regression": lambda s: aj.datasets.gaussian_regression(s.key, 4, 2, 2),
    "datasets.one_hot": lambda s: aj.datasets.one_hot(np.array([0, 1]), 2),
    "datasets.separable_pair": lambda s: aj.datasets.separable_pair(s.key, 4, 2),
    "engines.advance": lambda s: aj.engines.advance(
        s.problem, s.weights, s.rate, 2, max_steps=2, engine="xla"
    ),
    "engines.available": lambda s: aj.engines.available(),
    "engines.export_checks": lambda s: aj.engines.export_checks(),
    "engines.resolve": lambda s: aj.engines.resolve("auto", s.problem, s.weights),
    "engines.unavailable": lambda s: aj.engines.unavailable(),
    "initializers.aligned": lambda s: aj.initializers.aligned(
        s.key, s.square, (2, 2, 2), jnp.stack([s.vector] * 2)
    ),
    "initializers.balanced": lambda s: aj.initializers.balanced(s.key, (2, 2, 2), 0.1),
    "initializers.gaussian": lambda s: aj.initializers.gaussian(s.key, (2, 2, 2), 0.1),
    "initializers.identity": lambda s: aj.initializers.identity((2, 2, 2), 0.1),
    "initializers.orthogonal": lambda s: aj.initializers.orthogonal(s.key, (2, 2, 2), 0.1),
    "linalg.chain_gradients": lambda s: aj.linalg.chain_gradients(
        s.weights, lambda A, B: (None, B if A is None else A, A if B is None else B)
    ),
    "linalg.guarded": lambda s: aj.linalg.guarded(lambda x: (x, x > 0))(s.rate),
    "linalg.joint_diagonalize": lambda s: aj.linalg.joint_diagonalize([M + M.T]),
    "linalg.leave_one_out_products": lambda s: aj.linalg.leave_one_out_products(tuple(s.M)),
    "linalg.matmul": lambda s: aj.linalg.matmul(s.M, s.M),
    "linalg.narrowest": lambda s: aj.linalg.narrowest((2, 1, 2)),
    "linalg.narrowest_vertex": lambda s: aj.linalg.narrowest_vertex(s.weights),
    "linalg.split_products": lambda s: aj.linalg.split_products(s.weights),
    "linalg.traceless": lambda s: aj.linalg.traceless(s.M),
    "linalg.ussvd": lambda s: aj.linalg.ussvd(s.M),
    "losses.as_loss": lambda s: [
        jax.vmap(aj.losses.as_loss(name).value)(s.X[:, :1], s.labels.astype(s.X.dtype))
        for name in ("squared", "logistic", "exponential")
    ],
    "metrics.alignment": lambda s: aj.metrics.alignment(s.weights),
    "metrics.balancedness": lambda s: aj.metrics.balancedness(s.weights),
    "metrics.chain_alignment": lambda s: aj.metrics.chain_alignment(s.weights),
    "metrics.chance_alignment": lambda s: aj.metrics.chance_alignment(s.key, (2, 2, 2), samples=2),
    "metrics.invariance": lambda s: aj.metrics.invariance(s.weights, s.weights),
    "metrics.log_risk": lambda s: aj.metrics.log_risk(s.signs, s.one_output),
    "metrics.margin": lambda s: aj.metrics.margin(s.signs, s.one_output),
    "metrics.sharpness": lambda s: aj.metrics.sharpness(s.problem, s.weights),
    "metrics.singular_vector_alignment": lambda s: aj.metrics.singular_vector_alignment(s.weights),
    "metrics.spectral_ratio": lambda s: aj.metrics.spectral_ratio(s.weights),
    "metrics.strong_invariance": lambda s: aj.metrics.strong_invariance(s.weights, s.weights),
    "metrics.sharpness_and_residual": lambda s: aj.metrics.sharpness_and_residual(
        s.problem, s.weights
    ),
    "optimizers.muon": lambda s: aj.optimizers.muon(0.1).init(s.weights),
    "optimizers.transposed": lambda s: aj.optimizers.transposed(optax.sgd(0.1)).init(s.weights),
    "structures.Basis": structured(S.Basis(np.stack([M, np.eye(2)]))),
    "structures.Circulant": structured(S.Circulant(2)),
    "structures.Conv2d": structured(S.Conv2d((1, 2), (1, 1))),
    "structures.Dense": structured(S.Dense(2)),
    "structures.Diagonal": structured(S.Diagonal(2)),
    "structures.Sparse": structured(S.Sparse([[1, 0], [1, 1]])),
    "structures.Toeplitz": structured(S.Toeplitz(2)),
    "structures.as_structures": lambda s: S.as_structures(S.Diagonal(2), 2),
    "structures.check_coefficients": lambda s: S.check_coefficients(
        S.Diagonal(2), (s.vector, s.vector)
    ),
    "structures.forward": lambda s: S.forward(S.Circulant(2), (s.vector, s.vector), s.X),
    "structures.matrices": lambda s: S.matrices(S.Circulant(2), (s.vector, s.vector)),
    "theory.alignment.aligned_interpolation": lambda s: th.alignment.aligned_interpolation(
        s.key, S.Circulant(2), s.X[:2], depth=2, starts=2, steps=2
    ),
    "theory.alignment.architectures": lambda s: th.alignment.architectures(4),
    "theory.alignment.certify": lambda s: th.alignment.certify(s.problem),
    "theory.alignment.dimension_test": lambda s: th.alignment.dimension_test(S.Circulant(2), s.X),
    "theory.alignment.element_bound": lambda s: th.alignment.element_bound(4, 2),
    "theory.alignment.learning_rate_bound": lambda s: th.alignment.learning_rate_bound(
        s.certificate, jnp.stack([s.vector] * 2)
    ),
    "theory.alignment.least_depth": lambda s: th.alignment.least_depth(2, 4, 2),
    "theory.alignment.minimum_norm": lambda s: th.alignment.minimum_norm(s.M, 2),
    "theory.alignment.minimum_norm_factorization": lambda s: (
        th.alignment.minimum_norm_factorization(s.M, 2)
    ),
    "theory.alignment.minimum_singular_values": lambda s: th.alignment.minimum_singular_values(
        s.certificate, depth=2
    ),
    "theory.alignment.one_dimensional_start": lambda s: th.alignment.one_dimensional_start(
        s.key, (2, 2, 1), 0.1
    ),
    "theory.alignment.outer_alignment": lambda s: th.alignment.outer_alignment(s.weights, s.X, s.Y),
    "theory.alignment.predicted_rate": lambda s: th.alignment.predicted_rate(
        s.certificate, jnp.stack([s.vector] * 2), s.rate
    ),
    "theory.alignment.printed_element_bound": lambda s: th.alignment.printed_element_bound(4, 2),
    "theory.alignment.printed_learning_rate_bound": lambda s: (
        th.alignment.printed_learning_rate_bound(s.certificate, jnp.stack([s.vector] * 2))
    ),
    "theory.alignment.safe_learning_rate": lambda s: th.alignment.safe_learning_rate(
        s.certificate, jnp.stack([s.vector] * 2)
    ),
    "theory.alignment.printed_update": lambda s: th.alignment.printed_update(
        s.certificate, jnp.stack([s.vector] * 2), s.rate
    ),
    "theory.alignment.stability_threshold": lambda s: (
        th.alignment.stability_threshold(s.certificate, depth=2),
        th.alignment.stability_threshold(s.bottleneck),
    ),
    "theory.alignment.weak_condition": lambda s: th.alignment.weak_condition(s.square),
    "theory.margin.alignment_bound": lambda s: th.margin.alignment_bound(
        s.one_output, s.one_output
    ),
    "theory.margin.balance_drift": lambda s: th.margin.balance_drift(s.weights, s.rate),
    "theory.margin.balancedness_constant": lambda s: th.margin.balancedness_constant(s.weights),
    "theory.margin.first_layer_growth": lambda s: th.margin.first_layer_growth(
        s.signs, s.one_output
    ),
    "theory.margin.first_layer_threshold": lambda s: th.margin.first_layer_threshold(
        "exponential", 4, 1.0
    ),
    "theory.margin.late_times": lambda s: th.margin.late_times(s.separable, s.labels, s.found),
    "theory.margin.max_margin": lambda s: th.margin.max_margin(s.separable, s.labels),
    "theory.margin.neighbour_alignment": lambda s: th.margin.neighbour_alignment(s.weights),
    "theory.margin.norm_gap": lambda s: th.margin.norm_gap(s.weights),
    "theory.margin.predicted_angle": lambda s: th.margin.predicted_angle(1e3 * s.times, s.late, 2),
    "theory.margin.predicted_layer_norm": lambda s: th.margin.predicted_layer_norm(
        1e3 * s.times, s.late, 2
    ),
    "theory.margin.predicted_log_risk": lambda s: th.margin.predicted_log_risk(
        1e3 * s.times, s.late, 2
    ),
    "theory.margin.predicted_norm": lambda s: th.margin.predicted_norm(1e3 * s.times, s.late, 2),
    "theory.margin.predicted_ratio_exponent": lambda s: th.margin.predicted_ratio_exponent(2),
    "theory.margin.smoothness": lambda s: th.margin.smoothness("logistic", 2, 1.0),
    "theory.margin.support_spread": lambda s: th.margin.support_spread(
        s.separable, s.labels, s.found
    ),
    "theory.sequential.commutation_gap": lambda s: th.sequential.commutation_gap(s.problem),
    "theory.sequential.isotropy_bound": lambda s: th.sequential.isotropy_bound(2),
    "theory.sequential.isotropy_gap": lambda s: th.sequential.isotropy_gap(s.problem),
    "theory.sequential.joint_decomposition": lambda s: th.sequential.joint_decomposition(s.problem),
    "theory.sequential.learning_order": lambda s: th.sequential.learning_order(s.spectrum),
    "theory.sequential.limit_of_mode": lambda s: th.sequential.limit_of_mode(
        s.spectrum, s.ones, s.times
    ),
    "theory.sequential.limiting_norm": lambda s: th.sequential.limiting_norm(
        s.spectrum, s.ones, s.times
    ),
    "theory.sequential.printed_separates": lambda s: th.sequential.printed_separates(
        s.spectrum, s.rate
    ),
    "theory.sequential.reduced_rank_regression": lambda s: th.sequential.reduced_rank_regression(
        s.problem, 1
    ),
    "theory.sequential.regression_order": lambda s: th.sequential.regression_order(
        s.spectrum, s.ones
    ),
    "theory.sequential.separates": lambda s: th.sequential.separates(s.spectrum, s.rate),
    "theory.sequential.separation_margins": lambda s: th.sequential.separation_margins(
        s.spectrum, s.rate
    ),
    "theory.sequential.transition_steps": lambda s: th.sequential.transition_steps(
        s.spectrum, s.ones, 1.0, s.rate
    ),
    "theory.sequential.transition_times": lambda s: th.sequential.transition_times(
        s.spectrum, s.ones, 1.0
    ),
    "theory.sequential.unperturbed": lambda s: th.sequential.unperturbed(s.square),
}

IMAGES = aj.datasets.Images(
    np.zeros((2, 2, 2), np.uint8), np.array([0, 1], np.uint8), "none", "none"
)

FROM_FILES = {"cifar10", "digits", "imagenet64", "mnist", "mnist_or_digits"}


def public_calls():
    """The names of all functions and structures that users call."""
    modules = {"": aj} | {
        f"{name}.": getattr(aj, name) for name in aj.__all__ if inspect.ismodule(getattr(aj, name))
    }
    del modules["theory."]
    modules |= {f"theory.{name}.": getattr(th, name) for name in th.__all__}
    found = set()
    for prefix, module in modules.items():
        for name in module.__all__:
            value = getattr(module, name)
            is_layer = inspect.isclass(value) and issubclass(value, S.Structure)
            if inspect.isroutine(value) or (is_layer and not inspect.isabstract(value)):
                found.add(prefix + name)
    same = {"linalg.end_to_end"}  # at the top, too
    return found - same - {f"datasets.{name}" for name in FROM_FILES}


def test_every_public_call_is_here():
    missing = {name for name in public_calls() - set(CALLS) if name != "linalg.matmul"}
    assert not missing, "new in public: give it a line in CALLS"


def refused(names):
    """Which calls raise, and what."""
    s, wrong = given(), {}
    for name in names:
        try:
            jax.block_until_ready(CALLS[name](s))
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:200]
    return wrong


# Not `debug_infs`: an infinite time and a bound of nothing are right answers.
TOGETHER = (
    lambda: jax.numpy_rank_promotion("raise"),
    lambda: jax.numpy_dtype_promotion("strict"),
    lambda: jax.default_prng_impl("rbg"),
    lambda: jax.debug_nans(True),
)


def test_every_public_call_runs_under_strict_promotion_other_keys_and_a_watch_for_nan():
    """All of these switches at once: each only forbids, or changes what numbers are drawn."""
    with contextlib.ExitStack() as switches:
        for switch in TOGETHER:
            switches.enter_context(switch())
        assert not refused(CALLS)


# Without a compiler the search for aligned networks takes half a minute.
UNCOMPILED = [name for name in CALLS if name != "theory.alignment.aligned_interpolation"]


def test_every_public_call_runs_without_jit():
    with jax.disable_jit():
        assert not refused(UNCOMPILED)


def test_no_tracer_leaks():
    """From loops, from derivatives of them, and from a batch made of them."""
    with jax.checking_leaks():  # slow: every program is looked through
        assert not refused(["gradient_descent", "optimizer_descent", "sweep"])


def test_a_sweep_that_measures_sharpness_draws_the_same_by_other_generators():
    s = given()
    plain = sweep(s)
    with jax.default_prng_impl("rbg"):
        other = sweep(s)
    np.testing.assert_allclose(other["sharpness"], plain["sharpness"], rtol=1e-12)


def test_a_watch_for_nan_finds_none_in_a_run_that_diverges():
    s = given()
    with jax.debug_nans(True):
        run = aj.gradient_descent(s.problem, s.weights, 1e3, steps=50)
    assert run.status.item() == aj.Status.DIVERGED


def test_descents_of_device_arrays_send_nothing_unasked():
    s = given()
    with jax.transfer_guard("disallow"):
        aj.gradient_descent(s.problem, s.weights, s.rate, steps=2)
        aj.reduced_descent(s.reduced, s.rate, steps=2)
        aj.optimizer_descent(s.problem, s.weights, optax.sgd(0.1), steps=2)
