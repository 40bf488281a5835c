"""What theory, bases and the reduction are given wrongly is refused by the argument's name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax as aj
from alignjax.theory import alignment as theory

PROBLEM = aj.from_moments(np.diag([1.0, 2.0]), np.diag([3.0, 0.5]), 20.0)
LOGISTIC = aj.classification(np.eye(2), [1, -1], loss="logistic")
SENSING = aj.sensing(np.eye(2)[None], np.ones(1))
WEIGHTS = aj.initializers.identity((2, 2, 2), 0.5)
REDUCED = aj.reduce(PROBLEM, WEIGHTS)
CERTIFICATE = theory.certify(PROBLEM)
NO = theory.certify(aj.regression(*np.random.default_rng(0).standard_normal((2, 9, 3))))
S = np.full((2, 2), 0.5)


def descend(rate=0.1, *, reduced=REDUCED, steps=3, **options):
    return aj.reduced_descent(reduced, rate, steps=steps, **options)


def traced(function, value):
    return lambda: jax.jit(function)(value)


# (name of the case, call, exception, what the message says)
CASES = [
    ("reduce problem", lambda: aj.reduce(S, WEIGHTS), TypeError, r"^reduce takes a problem.*ndarr"),
    ("reduce loss", lambda: aj.reduce(LOGISTIC, WEIGHTS), TypeError, r"^reduce .*squared loss"),
    (
        "reduce weights",
        lambda: aj.reduce(PROBLEM, S),
        TypeError,
        r"^weights must be a tuple.*ndarr",
    ),
    ("reduce no weights", lambda: aj.reduce(PROBLEM, ()), ValueError, r"^weights .*one layer"),
    (
        "reduce widths",
        lambda: aj.reduce(PROBLEM, (np.eye(3),)),
        ValueError,
        r"^weights map 3 inputs to 3 outputs.*2 to 2",
    ),
    (
        "reduce NaN weights",
        lambda: aj.reduce(PROBLEM, (S * np.nan,)),
        ValueError,
        r"^weights\[0\] must be finite",
    ),
    (
        "reduce traced",
        traced(lambda w: aj.reduce(PROBLEM, w).U, WEIGHTS),
        TypeError,
        r"weights is traced",
    ),
    (
        "reduce tolerance negative",
        lambda: aj.reduce(PROBLEM, WEIGHTS, tolerance=-1),
        ValueError,
        r"^tolerance must be at least 0, got -1",
    ),
    (
        "reduce tolerance NaN",
        lambda: aj.reduce(PROBLEM, WEIGHTS, tolerance=np.nan),
        ValueError,
        r"^tolerance must be at least 0, got nan",
    ),
    (
        "reduce tolerance text",
        lambda: aj.reduce(PROBLEM, WEIGHTS, tolerance="a"),
        TypeError,
        r"^tolerance must hold real numbers",
    ),
    ("descent reduced", lambda: descend(reduced=PROBLEM), TypeError, r"^reduced must be.*Moment"),
    ("descent rate text", lambda: descend("a"), TypeError, r"^learning_rate must hold real"),
    ("descent rate negative", lambda: descend(-0.1), ValueError, r"^learning_rate .*got -0\.1"),
    ("descent rate NaN", lambda: descend(np.nan), ValueError, r"^learning_rate .*got nan"),
    ("descent rates", lambda: descend([0.1] * 3), ValueError, r"^learning_rate .*\(2,\).*\(3,\)"),
    ("descent steps", lambda: descend(steps=-1), ValueError, r"^steps must be at least 0, got -1"),
    ("descent steps text", lambda: descend(steps="3"), TypeError, r"^steps must be an integer"),
    ("descent save_at", lambda: descend(save_at=[2, 1]), ValueError, r"^save_at .*increasing"),
    ("descent save_at late", lambda: descend(save_at=[9]), ValueError, r"^save_at .*steps = 3"),
    (
        "descent start shape",
        lambda: descend(singular_values=S[None]),
        ValueError,
        r"^singular_values must have shape \(d, r\) = \(2, 2\), got \(1, 2, 2\).*vmap",
    ),
    (
        "descent start complex",
        lambda: descend(singular_values=1j * S),
        TypeError,
        r"^singular_values must hold real.*complex",
    ),
    ("expand reduced", lambda: aj.expand(WEIGHTS, S), TypeError, r"^reduced must be .*tuple"),
    ("expand shape", lambda: aj.expand(REDUCED, S[0]), ValueError, r"^singular_values .*\(2,\)"),
    ("expand None", lambda: aj.expand(REDUCED, [None]), TypeError, r"^singular_values must hold"),
    ("certify array", lambda: theory.certify(S), TypeError, r"^certify takes a problem.*ndarray"),
    (
        "certify traced",
        traced(lambda p: theory.certify(p).U, PROBLEM),
        TypeError,
        r"problem is traced",
    ),
    (
        "certify tolerance text",
        lambda: theory.certify(PROBLEM, tolerance_yes="a"),
        TypeError,
        r"^tolerance_yes must hold real numbers",
    ),
    (
        "certify tolerance NaN",
        lambda: theory.certify(PROBLEM, tolerance_no=np.nan),
        ValueError,
        r"^tolerance_no must be at least 0, got nan",
    ),
    (
        "certify tolerances swapped",
        lambda: theory.certify(PROBLEM, tolerance_yes=1.0, tolerance_no=0.1),
        ValueError,
        r"tolerance_yes <= tolerance_no, got 1\.0 and 0\.1",
    ),
    ("weak sensing", lambda: theory.weak_condition(SENSING), TypeError, r"^weak_condition .*Sens"),
    (
        "weak tolerance NaN",
        lambda: theory.weak_condition(PROBLEM, tolerance=np.nan),
        ValueError,
        r"^tolerance must be at least 0, got nan",
    ),
    (
        "weak tolerance shape",
        lambda: theory.weak_condition(PROBLEM, tolerance=[0.1]),
        ValueError,
        r"^tolerance must have 0 dim",
    ),
    (
        "bound spectra",
        lambda: theory.learning_rate_bound(3, S),
        TypeError,
        r"^spectra must .*int 3",
    ),
    ("bound no", lambda: theory.learning_rate_bound(NO, S), ValueError, r"^spectra .*verdict"),
    (
        "bound sensing",
        lambda: theory.learning_rate_bound(theory.certify(SENSING), S),
        TypeError,
        r"^spectra of a sensing problem",
    ),
    (
        "bound modes",
        lambda: theory.learning_rate_bound(REDUCED, np.ones((2, 3))),
        ValueError,
        r"^singular_values .*at most 2.*\(2, 3\)",
    ),
    (
        "printed rate text",
        lambda: theory.printed_update(REDUCED, S, "a"),
        TypeError,
        r"^learning_rate must hold real numbers",
    ),
    (
        "printed rate vector",
        lambda: theory.printed_update(REDUCED, S, [0.1, 0.1]),
        ValueError,
        r"^learning_rate must have 0 dim",
    ),
    (
        "printed values",
        lambda: theory.printed_update(REDUCED, None, 0.1),
        TypeError,
        r"^singular_values must hold real numbers",
    ),
    (
        "predicted rate text",
        lambda: theory.predicted_rate(REDUCED, S, "a"),
        TypeError,
        r"^learning_rate must hold real numbers",
    ),
    (
        "predicted rates",
        lambda: theory.predicted_rate(REDUCED, S, [0.1] * 3),
        ValueError,
        r"^learning_rate .*\(2,\).*\(3,\)",
    ),
    (
        "predicted values",
        lambda: theory.predicted_rate(REDUCED, S[0], 0.1),
        ValueError,
        r"^singular_values must have 2 dim",
    ),
    (
        "minimum depth",
        lambda: theory.minimum_singular_values(CERTIFICATE, depth=2.5),
        TypeError,
        r"^depth must be an integer, got float 2\.5",
    ),
    (
        "minimum both",
        lambda: theory.minimum_singular_values(CERTIFICATE, S, depth=2),
        ValueError,
        r"either singular_values or depth",
    ),
    (
        "threshold depth",
        lambda: theory.stability_threshold(CERTIFICATE, depth=0),
        ValueError,
        r"^depth must be at least 1, got 0",
    ),
    (
        "threshold both",
        lambda: theory.stability_threshold(CERTIFICATE, depth=2, singular_values=S),
        ValueError,
        r"either singular_values or depth",
    ),
    ("norm vector", lambda: theory.minimum_norm(S[0], 2), ValueError, r"^P must have 2 dim"),
    ("norm depth", lambda: theory.minimum_norm(S, 0), ValueError, r"^depth must be at least 1"),
    (
        "factorization widths",
        lambda: theory.minimum_norm_factorization(S, 2, (2, 2)),
        ValueError,
        r"^widths must be .*d = 2",
    ),
    (
        "one output",
        lambda: theory.one_dimensional_start(jax.random.key(0), (2, 2), 1.0),
        ValueError,
        r"^widths must end in k_d = 1",
    ),
    (
        "one output key",
        lambda: theory.one_dimensional_start(0, (2, 1), 1.0),
        TypeError,
        r"^key must be a key",
    ),
    (
        "one output scale",
        lambda: theory.one_dimensional_start(jax.random.key(0), (2, 1), jnp.ones(2)),
        ValueError,
        r"^scale must have 0 dim",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
