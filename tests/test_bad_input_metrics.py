"""Metrics refuse bad input before tracing, and name the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax import metrics

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 3))
SIGNS = np.array([1, -1, 1, 1, -1, -1])
WIDTHS = (3, 4, 2)
WEIGHTS = aj.initializers.gaussian(KEY, WIDTHS, 1.0)
BASES = tuple(np.eye(k) for k in WIDTHS)
REGRESSION = aj.regression(X, X[:, :2])
LOGISTIC = aj.classification(X, SIGNS)
OWN_LOSS = aj.classification(X, SIGNS, loss=lambda z, y: (z[0] - y) ** 4)
ROW = (np.ones((1, 3)),)
NAN = (np.full((4, 3), np.nan), WEIGHTS[1])


def bases_with(index, matrix):
    return (*BASES[:index], matrix, *BASES[index + 1 :])


def frozen(bases, weights=WEIGHTS):
    return metrics.invariance(weights, bases=bases)


def sharp(problem=REGRESSION, weights=WEIGHTS, **options):
    return metrics.sharpness(problem, weights, **options)


OF_WEIGHTS = {
    "alignment": metrics.alignment,
    "chain_alignment": metrics.chain_alignment,
    "singular_vector_alignment": metrics.singular_vector_alignment,
    "balancedness": metrics.balancedness,
    "spectral_ratio": metrics.spectral_ratio,
    "invariance": lambda w: metrics.invariance(w, WEIGHTS),
    "strong_invariance": lambda w: metrics.strong_invariance(w, bases=BASES),
    "log_risk": lambda w: metrics.log_risk(REGRESSION, w),
    "margin": lambda w: metrics.margin(LOGISTIC, w),
    "sharpness": lambda w: metrics.sharpness(REGRESSION, w),
}
# What no metric takes for weights: (weights, exception, what the message says).
BAD_WEIGHTS = {
    "an array": (X, TypeError, r"^weights must be a tuple.*ndarray of shape \(6, 3\)"),
    "text": ("W", TypeError, r"^weights must be a tuple.*'W'"),
    "nothing": (None, TypeError, r"^weights must be a tuple.*None"),
    "no layer": ((), ValueError, r"^weights must hold at least one layer, got an empty tuple"),
    "a vector": ((WEIGHTS[0], X[0]), ValueError, r"^weights\[1\] .*2 dim.*\(3,\)"),
    "an empty layer": ((np.ones((0, 3)),), ValueError, r"^weights\[0\] .*empty.*\(0, 3\)"),
    "no chain": (
        (WEIGHTS[0], np.ones((2, 3))),
        ValueError,
        r"^weights do not chain: weights\[1\] .*takes 3.*gives 4",
    ),
    "complex": ((1j * WEIGHTS[0],), TypeError, r"^weights\[0\] must hold real.*complex128"),
    "objects": (([[None, {}]],), TypeError, r"^weights\[0\] must hold real.*object"),
    "NaN": (NAN, ValueError, r"^weights\[0\] must be finite.*\[0, 0\]"),
    "infinity": ((WEIGHTS[0], jnp.inf * WEIGHTS[1]), ValueError, r"^weights\[1\] must be finite"),
    "half precision": (
        (WEIGHTS[0].astype(jnp.float16),),
        TypeError,
        r"^weights\[0\] must be float32 or float64, got float16",
    ),
}


@pytest.mark.parametrize("metric", OF_WEIGHTS)
@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_no_metric_takes_bad_weights(metric, case):
    weights, exception, message = BAD_WEIGHTS[case]
    with pytest.raises(exception, match=message):
        OF_WEIGHTS[metric](weights)


# (name of the case, call, exception, what the message says)
CASES = [
    (
        "neither start nor bases",
        lambda: metrics.invariance(WEIGHTS),
        TypeError,
        r"start and bases is expected, got neither",
    ),
    (
        "start and bases",
        lambda: metrics.strong_invariance(WEIGHTS, WEIGHTS, bases=BASES),
        TypeError,
        r"start and bases is expected, got both",
    ),
    (
        "start of another depth",
        lambda: metrics.invariance(WEIGHTS, WEIGHTS[:1]),
        ValueError,
        r"^start must have the shapes of weights, \[\(4, 3\), \(2, 4\)\], got \[\(4, 3\)\]",
    ),
    (
        "start of another width",
        lambda: metrics.invariance(WEIGHTS, (np.ones((5, 3)), np.ones((2, 5)))),
        ValueError,
        r"^start must have the shapes of weights.*\(5, 3\)",
    ),
    (
        "start an array",
        lambda: metrics.invariance(WEIGHTS, X),
        TypeError,
        r"^start must be a tuple",
    ),
    (
        "start NaN",
        lambda: metrics.invariance(WEIGHTS, NAN),
        ValueError,
        r"^start\[0\] must be finite",
    ),
    (
        "start complex",
        lambda: metrics.invariance(WEIGHTS, (1j * X,)),
        TypeError,
        r"^start\[0\] .*complex",
    ),
    ("bases an array", lambda: frozen(np.eye(3)), TypeError, r"^bases must be a tuple.*\(3, 3\)"),
    ("bases text", lambda: frozen("PQR"), TypeError, r"^bases must be a tuple.*'PQR'"),
    (
        "bases of the hidden vertices only",
        lambda: frozen(BASES[1:2]),
        ValueError,
        r"^bases must hold one matrix a width, 3 for the widths \(3, 4, 2\), got 1",
    ),
    (
        "bases reversed",
        lambda: frozen(BASES[::-1]),
        ValueError,
        r"^bases\[0\] must be of shape \(3, 3\), got \(2, 2\)",
    ),
    (
        "bases with a frame",
        lambda: frozen(bases_with(1, np.eye(4)[:, :2])),
        ValueError,
        r"^bases\[1\] must be of shape \(4, 4\), got \(4, 2\)",
    ),
    (
        "bases with a vector",
        lambda: frozen(bases_with(2, np.ones(2))),
        ValueError,
        r"^bases\[2\] must have 2 dim",
    ),
    (
        "bases scaled",
        lambda: frozen(bases_with(1, 2 * np.eye(4))),
        ValueError,
        r"^bases\[1\] must be orthogonal, .*identity by 3, .*1\.5e-08",
    ),
    (
        "bases skewed",
        lambda: metrics.strong_invariance(WEIGHTS, bases=bases_with(2, [[1.0, 1e-6], [0.0, 1.0]])),
        ValueError,
        r"^bases\[2\] must be orthogonal, .*identity by 1e-06",
    ),
    (
        "bases of zeros",
        lambda: frozen(bases_with(0, np.zeros((3, 3), np.float32))),
        ValueError,
        r"^bases\[0\] must be orthogonal, .*identity by 1, .*0\.00035",
    ),
    (
        "bases beyond squares",
        lambda: frozen(bases_with(0, 1e200 * np.eye(3))),
        ValueError,
        r"^bases\[0\] must be orthogonal, .*identity by inf",
    ),
    (
        "bases of a single layer",
        lambda: frozen((2 * np.eye(3), np.eye(4)), WEIGHTS[:1]),
        ValueError,
        r"^bases\[0\] must be orthogonal",
    ),
    (
        "bases NaN",
        lambda: frozen(bases_with(1, np.full((4, 4), np.nan))),
        ValueError,
        r"^bases\[1\] must be finite",
    ),
    (
        "bases complex",
        lambda: frozen(bases_with(0, 1j * np.eye(3))),
        TypeError,
        r"^bases\[0\] .*complex",
    ),
    ("chance key", lambda: metrics.chance_alignment(0, WIDTHS), TypeError, r"^key .*int 0"),
    (
        "chance keys",
        lambda: metrics.chance_alignment(jax.random.split(KEY, 3), WIDTHS),
        ValueError,
        r"^key must be one key.*\(3,\)",
    ),
    (
        "chance one width",
        lambda: metrics.chance_alignment(KEY, (3,)),
        ValueError,
        r"^widths .*at least two",
    ),
    (
        "chance fractional width",
        lambda: metrics.chance_alignment(KEY, (3, 2.5)),
        TypeError,
        r"^widths\[1\] .*2\.5",
    ),
    (
        "chance no samples",
        lambda: metrics.chance_alignment(KEY, WIDTHS, samples=0),
        ValueError,
        r"^samples .*at least 1, got 0",
    ),
    (
        "chance samples traced",
        lambda: jax.jit(lambda n: metrics.chance_alignment(KEY, WIDTHS, samples=n))(3),
        TypeError,
        r"^samples .*traced",
    ),
    (
        "log_risk of an array",
        lambda: metrics.log_risk(X, WEIGHTS),
        TypeError,
        r"^problem must .*ndarray",
    ),
    (
        "log_risk arguments swapped",
        lambda: metrics.log_risk(WEIGHTS, REGRESSION),
        TypeError,
        r"^problem must .*tuple",
    ),
    (
        "log_risk inputs",
        lambda: metrics.log_risk(REGRESSION, (np.ones((2, 5)),)),
        ValueError,
        r"^weights\[0\] takes 5 inputs.*k_0 = 3",
    ),
    (
        "log_risk outputs",
        lambda: metrics.log_risk(LOGISTIC, WEIGHTS),
        ValueError,
        r"^weights\[1\] gives 2 outputs.*k_d = 1",
    ),
    (
        "margin of a regression",
        lambda: metrics.margin(REGRESSION, WEIGHTS),
        TypeError,
        r"^problem must be a classification.*-1 or \+1 or class ids, got MomentProblem",
    ),
    (
        "margin of sensing",
        lambda: metrics.margin(aj.sensing(X[None], [1.0]), (np.ones((6, 3)),)),
        TypeError,
        r"^problem must be a classification.*got SensingProblem",
    ),
    (
        "margin of another loss",
        lambda: metrics.margin(OWN_LOSS, ROW),
        TypeError,
        r"^problem must be a classification.*got SampleProblem with the loss '<lambda>'",
    ),
    (
        "margin of nothing",
        lambda: metrics.margin(None, ROW),
        TypeError,
        r"^problem must be a classification.*NoneType",
    ),
    (
        "margin outputs",
        lambda: metrics.margin(LOGISTIC, WEIGHTS),
        ValueError,
        r"^weights\[1\] gives 2 outputs",
    ),
    (
        "sharpness of nothing",
        lambda: sharp(problem=None),
        TypeError,
        r"^problem must .*NoneType",
    ),
    (
        "sharpness outputs",
        lambda: sharp(weights=WEIGHTS[:1]),
        ValueError,
        r"^weights\[0\] gives 4 outputs.*k_d = 2",
    ),
    ("sharpness key", lambda: sharp(key=7), TypeError, r"^key must be a key.*int 7"),
    ("sharpness tolerance text", lambda: sharp(tolerance="low"), TypeError, r"^tolerance .*real"),
    (
        "sharpness tolerance shape",
        lambda: sharp(tolerance=[0.1]),
        ValueError,
        r"^tolerance .*0 dim",
    ),
    (
        "sharpness tolerance NaN",
        lambda: sharp(tolerance=np.nan),
        ValueError,
        r"^tolerance .*finite",
    ),
    (
        "sharpness tolerance negative",
        lambda: sharp(tolerance=-1e-3),
        ValueError,
        r"^tolerance must be at least 0, got -0\.001",
    ),
    (
        "sharpness tolerance negative while tracing",
        lambda: jax.jit(lambda w: sharp(weights=w, tolerance=-1e-3))(WEIGHTS),
        ValueError,
        r"^tolerance must be at least 0, got -0\.001",
    ),
    (
        "sharpness no iterations",
        lambda: sharp(max_iterations=0),
        ValueError,
        r"^max_iterations .*at least 1, got 0",
    ),
    (
        "sharpness fractional iterations",
        lambda: sharp(max_iterations=1e3),
        TypeError,
        r"^max_iterations must be an integer.*1000\.0",
    ),
]


@pytest.mark.parametrize(
    ("call", "exception", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_arguments_are_refused_by_name(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_lists_integers_and_mixed_precisions_are_taken():
    layers = ([[1, 2, 3]] * 4, np.ones((2, 4), np.float32))
    assert metrics.alignment(layers).dtype == np.float64
    identities = [np.eye(k, dtype=int).tolist() for k in WIDTHS]
    np.testing.assert_array_equal(
        metrics.invariance(WEIGHTS, bases=identities), metrics.invariance(WEIGHTS, bases=BASES)
    )


def test_traced_weights_that_are_not_finite_give_nan_and_not_a_number_that_looks_right():
    def all_metrics(weights):
        return [OF_WEIGHTS[name](weights) for name in ("alignment", "balancedness", "sharpness")]

    for values in jax.jit(all_metrics)(NAN):
        assert jnp.isnan(values).all()
