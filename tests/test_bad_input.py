"""Bad input is refused before tracing, by name; what people pass in good faith is taken."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj
from alignjax import _validation, linalg

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(6, 3))
Y = np.random.default_rng(1).normal(size=(6, 2))
LABELS = np.array([1, -1, 1, 1, -1, -1])
IDS = np.array([0, 1, 2, 0, 1, 2])
NAN = np.where(np.arange(18).reshape(6, 3) == 7, np.nan, X)
PROBLEM = aj.regression(X, Y)
MOMENTS_ONLY = aj.from_moments(X.T @ X / 6, Y.T @ X / 6, (Y**2).sum() / 6)
WEIGHTS = aj.initializers.identity((3, 2, 2), 1.0)
ADAM = optax.adam(0.1)


def run(learning_rate=0.1, *, problem=PROBLEM, weights=WEIGHTS, steps=3, **options):
    return aj.gradient_descent(problem, weights, learning_rate, steps=steps, **options)


def optimize(*, problem=PROBLEM, weights=WEIGHTS, optimizer=ADAM, steps=3, **options):
    return aj.optimizer_descent(problem, weights, optimizer, steps=steps, **options)


def moments(inputs=None, cross=None, energy=9.0):
    inputs = np.eye(3) if inputs is None else inputs
    return aj.from_moments(inputs, np.ones((2, 3)) if cross is None else cross, energy)


def traced(function, value):
    return lambda: jax.jit(function)(value)


# (name of the case, call, exception, what the message says)
CASES = [
    ("regression text", lambda: aj.regression("abc", Y), (TypeError), r"^X must hold real"),
    ("regression None", lambda: aj.regression(None, Y), TypeError, r"^X must hold real"),
    ("regression complex", lambda: aj.regression(X * 1j, Y), TypeError, r"^X .*complex128"),
    ("regression ragged", lambda: aj.regression([[1.0], [1.0, 2.0]], Y), TypeError, r"^X must be"),
    ("regression vector", lambda: aj.regression(X[0], Y), ValueError, r"^X .*2 dim.*got 1"),
    ("regression stack", lambda: aj.regression(X[None], Y), ValueError, r"^X .*got 3"),
    ("regression empty", lambda: aj.regression(X[:0], Y[:0]), ValueError, r"^X .*empty.*\(0, 3\)"),
    ("regression NaN", lambda: aj.regression(NAN, Y), ValueError, r"^X .*NaN.*\[2, 1\]"),
    ("regression infinite", lambda: aj.regression(X, Y / 0), ValueError, r"^Y must be finite"),
    ("regression rows", lambda: aj.regression(X, Y[:4]), ValueError, r"^Y .*6 rows, Y 4"),
    ("regression Y stack", lambda: aj.regression(X, Y[None]), ValueError, r"^Y .*1 or 2 dim"),
    ("regression Y object", lambda: aj.regression(X, [None] * 6), TypeError, r"^Y .*real"),
    (
        "regression overflow",
        lambda: aj.regression(1e200 * X, Y),
        ValueError,
        r"^X and Y .*overflow",
    ),
    ("autoencoding overflow", lambda: aj.autoencoding(1e200 * X), ValueError, r"overflow: scale"),
    ("autoencoding underflow", lambda: aj.autoencoding(1e-200 * X), ValueError, r"underflow:"),
    ("tiny X and Y", lambda: aj.regression(1e-150 * X, 1e-200 * Y), ValueError, r"of X .* and Y"),
    ("autoencoding vector", lambda: aj.autoencoding(X[0]), ValueError, r"^X .*2 dim"),
    ("factorization scalar", lambda: aj.factorization(2.0), ValueError, r"^M .*2 dim.*got 0"),
    ("factorization NaN", lambda: aj.factorization(NAN), ValueError, r"^M .*finite"),
    ("inversion complex", lambda: aj.inversion(1j * np.eye(2)), TypeError, r"^M .*complex"),
    ("moments not square", lambda: moments(np.ones((3, 2))), ValueError, r"^input_moment .*square"),
    (
        "moments skew",
        lambda: moments(np.eye(3) + np.eye(3, k=1)),
        ValueError,
        r"^input_.*symmetric",
    ),
    ("moments negative", lambda: moments(-np.eye(3)), ValueError, r"^input_.*semidefinite.*-1"),
    ("moments cross", lambda: moments(cross=np.ones((2, 4))), ValueError, r"^cross_.*\(2, 4\)"),
    ("moments range", lambda: moments(np.diag([1.0, 1, 0])), ValueError, r"^cross_.*range"),
    ("moments energy", lambda: moments(energy=1.0), ValueError, r"^target_energy .*at least 6"),
    ("moments energy shape", lambda: moments(energy=[9.0]), ValueError, r"^target_energy .*0 dim"),
    ("sensing matrices", lambda: aj.sensing(X, X[:, 0]), ValueError, r"^matrices .*3 dim"),
    ("sensing values", lambda: aj.sensing(X[None], [1.0, 2.0]), ValueError, r"^values .*1 matri"),
    ("sensing shape", lambda: aj.sensing(X[None], 1.0), ValueError, r"^values .*1 dim"),
    ("labels domain", lambda: aj.classification(X, IDS), ValueError, r"^labels .*-1 or \+1.*2\]"),
    ("labels count", lambda: aj.classification(X, LABELS[:4]), ValueError, r"^labels .*6 rows"),
    ("labels text", lambda: aj.classification(X, list("abcdef")), TypeError, r"^labels .*real"),
    ("labels matrix", lambda: aj.classification(X, X), ValueError, r"^labels .*1 dim"),
    ("labels scalar", lambda: aj.classification(X, 1), ValueError, r"^labels .*one label a sample"),
    (
        "labels all one",
        lambda: aj.classification(X, np.ones(6, int), "squared"),
        ValueError,
        r"^labels are all 1.*classes=",
    ),
    (
        "labels signs with classes",
        lambda: aj.classification(X, LABELS, "squared", classes=2),
        ValueError,
        r"^labels must be class ids.*-1",
    ),
    (
        "labels negative ids",
        lambda: aj.classification(X, LABELS, "cross_entropy"),
        ValueError,
        r"^labels must be class ids.*-1",
    ),
    (
        "labels fractions",
        lambda: aj.classification(X, IDS + 0.5, "cross_entropy"),
        ValueError,
        r"^labels must be class ids.*0\.5",
    ),
    (
        "labels beyond classes",
        lambda: aj.classification(X, IDS, "cross_entropy", classes=2),
        ValueError,
        r"^labels must be below classes = 2, got 2",
    ),
    (
        "classes fraction",
        lambda: aj.classification(X, IDS, "cross_entropy", classes=3.0),
        TypeError,
        r"^classes must be an integer",
    ),
    (
        "labels traced",
        traced(lambda ids: aj.classification(X, ids, "cross_entropy"), IDS),
        TypeError,
        r"^labels are traced.*classes=",
    ),
    ("loss unknown", lambda: aj.classification(X, LABELS, "hinge"), ValueError, r"^loss .*'hinge'"),
    ("loss number", lambda: aj.classification(X, LABELS, 3), TypeError, r"^loss must be .*int 3"),
    ("loss None", lambda: aj.losses.as_loss(None), TypeError, r"^loss must be .*None"),
    ("problem array", lambda: aj.risk(X, WEIGHTS), TypeError, r"^problem must .*ndarray"),
    ("problem swapped", lambda: aj.gradient(WEIGHTS, PROBLEM), TypeError, r"^problem must .*tuple"),
    ("problem None", lambda: run(problem=None), TypeError, r"^problem must .*None"),
    ("weights array", lambda: aj.risk(PROBLEM, X), TypeError, r"^weights must be a tuple"),
    ("weights text", lambda: aj.risk(PROBLEM, "W"), TypeError, r"^weights must be .*'W'"),
    ("weights empty", lambda: aj.risk(PROBLEM, ()), ValueError, r"^weights .*at least one layer"),
    ("weights vector", lambda: aj.risk(PROBLEM, [X[0]]), ValueError, r"^weights\[0\] .*2 dim"),
    ("weights NaN", lambda: aj.risk(PROBLEM, (NAN,)), ValueError, r"^weights\[0\] .*finite"),
    ("weights object", lambda: aj.risk(PROBLEM, ({},)), TypeError, r"^weights\[0\] .*real"),
    (
        "weights chain",
        lambda: aj.end_to_end((np.ones((2, 3)), np.ones((2, 3)))),
        ValueError,
        r"^weights do not chain: weights\[1\] .*takes 3.*gives 2",
    ),
    ("weights reversed", lambda: run(weights=WEIGHTS[::-1]), ValueError, r"^weights do not chain"),
    (
        "weights inputs",
        lambda: run(weights=(np.ones((2, 4)),)),
        ValueError,
        r"^weights\[0\].*k_0 = 3",
    ),
    (
        "weights outputs",
        lambda: run(weights=(np.ones((4, 3)),)),
        ValueError,
        r"^weights\[0\].*k_d = 2",
    ),
    ("rate many", lambda: run([0.1, 0.2, 0.3]), ValueError, r"^learning_rate .*\(2,\).*vmap"),
    ("rate matrix", lambda: run(np.ones((1, 2))), ValueError, r"^learning_rate .*\(1, 2\)"),
    ("rate text", lambda: run("fast"), TypeError, r"^learning_rate .*real"),
    ("rate None", lambda: run(None), TypeError, r"^learning_rate .*real"),
    ("rate negative", lambda: run(-0.1), ValueError, r"^learning_rate .*at least 0, got -0\.1"),
    ("rate NaN", lambda: run(np.nan), ValueError, r"^learning_rate .*finite.*nan"),
    ("rate complex", lambda: run(0.1j), TypeError, r"^learning_rate .*complex"),
    ("steps fraction", lambda: run(steps=2.5), TypeError, r"^steps must be an integer.*2\.5"),
    ("steps negative", lambda: run(steps=-1), ValueError, r"^steps must be at least 0, got -1"),
    ("steps bool", lambda: run(steps=True), TypeError, r"^steps must be an integer.*True"),
    ("steps beyond int32", lambda: run(steps=2**31), ValueError, r"^steps must be below 2\*\*31"),
    ("steps traced", traced(lambda n: run(steps=n), 3), TypeError, r"^steps shapes .*traced"),
    ("save_at unsorted", lambda: run(save_at=(0, 2, 1)), ValueError, r"^save_at .*increasing"),
    ("save_at repeated", lambda: run(save_at=(0, 0)), ValueError, r"^save_at .*increasing.*0, 0"),
    ("save_at beyond", lambda: run(save_at=(0, 4)), ValueError, r"^save_at .*steps = 3.*0 to 4"),
    ("save_at negative", lambda: run(save_at=(-1, 2)), ValueError, r"^save_at .*-1 to 2"),
    ("save_at empty", lambda: run(save_at=()), ValueError, r"^save_at must hold at least one"),
    ("save_at fractions", lambda: run(save_at=(0.5, 2)), TypeError, r"^save_at .*integers"),
    ("save_at text", lambda: run(save_at="all"), TypeError, r"^save_at .*integers.*'all'"),
    (
        "save_at traced",
        traced(lambda s: run(save_at=s), np.array([0, 3])),
        TypeError,
        r"^save_at shapes .*traced",
    ),
    ("observe", lambda: run(observe="risk"), TypeError, r"^observe must be callable.*'risk'"),
    ("observe result", lambda: run(observe=str), TypeError, r"^observe must return .*str"),
    ("until text", lambda: run(until="done"), TypeError, r"^until must hold real"),
    ("until vector", lambda: run(until=[0.1]), ValueError, r"^until .*0 dim"),
    ("until NaN", lambda: run(until=np.nan), ValueError, r"^until must be finite"),
    ("save_at nested", lambda: run(save_at=[[0, 1], [2, 3]]), TypeError, r"^save_at .*integers"),
    ("save_at mask", lambda: run(save_at=[False, True]), TypeError, r"^save_at .*integers"),
    ("engine unknown", lambda: run(engine="gpu"), ValueError, r"^engine .*'auto'.*'gpu'"),
    ("engine list", lambda: run(engine=["xla"]), ValueError, r"^engine .*\['xla'\]"),
    (
        "dtype int",
        lambda: aj.initializers.identity((2, 2), 1, dtype=int),
        TypeError,
        r"^dtype .*int",
    ),
    (
        "dtype text",
        lambda: aj.initializers.gaussian(KEY, (2, 2), 1, dtype="float99"),
        TypeError,
        r"^dtype .*float99",
    ),
    ("dtype moments", lambda: aj.Moments.zero(2, 2, "int8"), TypeError, r"^dtype .*int8"),
    ("engine None", lambda: run(engine=None), ValueError, r"^engine .*None"),
    ("optimizer number", lambda: optimize(optimizer=0.1), TypeError, r"^optimizer .*float 0\.1"),
    ("optimizer uncalled", lambda: optimize(optimizer=optax.adam), TypeError, r"^optimizer .*func"),
    ("optimizer steps", lambda: optimize(steps=None), TypeError, r"^steps .*None"),
    ("optimizer save_at", lambda: optimize(save_at=(9,)), ValueError, r"^save_at .*steps = 3"),
    ("optimizer observe", lambda: optimize(observe=1), TypeError, r"^observe must be callable"),
    ("batch no key", lambda: optimize(batch_size=2), ValueError, r"^batch_size .*key"),
    (
        "batch too large",
        lambda: optimize(batch_size=7, key=KEY),
        ValueError,
        r"^batch_size .*n = 6",
    ),
    (
        "batch zero",
        lambda: optimize(batch_size=0, key=KEY),
        ValueError,
        r"^batch_size .*at least 1",
    ),
    ("batch float", lambda: optimize(batch_size=2.0, key=KEY), TypeError, r"^batch_size .*integer"),
    ("key alone", lambda: optimize(key=KEY), ValueError, r"^key .*batch_size"),
    ("key number", lambda: optimize(batch_size=2, key=0), TypeError, r"^key .*jax\.random\.key"),
    (
        "batch without samples",
        lambda: optimize(problem=MOMENTS_ONLY, batch_size=2, key=KEY),
        ValueError,
        r"^batch_size needs the samples",
    ),
    ("log_steps zero", lambda: aj.log_steps(0, 5), ValueError, r"^steps .*at least 1"),
    ("log_steps count", lambda: aj.log_steps(10, 1), ValueError, r"^count .*at least 2"),
    ("every zero", lambda: aj.every(10, 0), ValueError, r"^interval .*at least 1"),
    ("every fraction", lambda: aj.every(10, 0.5), TypeError, r"^interval .*integer"),
    ("init key", lambda: aj.initializers.gaussian(0, (3, 2), 1.0), TypeError, r"^key .*int 0"),
    (
        "init keys",
        lambda: aj.initializers.orthogonal(jax.random.split(KEY, 2), (3, 2), 1.0),
        ValueError,
        r"^key must be one key.*\(2,\)",
    ),
    (
        "init raw keys",
        lambda: aj.initializers.gaussian(np.zeros(3, np.uint32), (3, 2), 1.0),
        TypeError,
        r"^key must be .*\(3,\)",
    ),
    ("init widths", lambda: aj.initializers.identity(3, 1.0), TypeError, r"^widths .*int 3"),
    ("init one width", lambda: aj.initializers.identity((3,), 1.0), ValueError, r"^widths .*two"),
    ("init width zero", lambda: aj.initializers.identity((3, 0), 1.0), ValueError, r"^widths\[1\]"),
    ("init width float", lambda: aj.initializers.identity((3.0, 2), 1), TypeError, r"^widths\[0\]"),
    (
        "init scale",
        lambda: aj.initializers.balanced(KEY, (3, 2), [1.0]),
        ValueError,
        r"^scale .*0 d",
    ),
    (
        "init scale NaN",
        lambda: aj.initializers.gaussian(KEY, (3, 2), np.nan),
        ValueError,
        r"^scale",
    ),
    (
        "aligned shape",
        lambda: aj.initializers.aligned(KEY, None, (3, 2, 2), np.ones((2, 3))),
        ValueError,
        r"^singular_values .*\(2, 2\).*\(2, 3\)",
    ),
    (
        "aligned widths",
        lambda: aj.initializers.aligned(KEY, aj.autoencoding(X), (4, 2, 3), np.ones((2, 2))),
        ValueError,
        r"^widths .*k_0 = 3",
    ),
    (
        "aligned data",
        lambda: aj.initializers.aligned(KEY, PROBLEM, (3, 2, 2), np.ones((2, 2))),
        aj.NotAlignedError,
        r"no common bases",
    ),
    (
        "aligned nothing",
        lambda: aj.initializers.aligned(KEY, X, (3, 2, 2), np.ones((2, 2))),
        TypeError,
        r"^problem_or_certificate must be .*ndarray",
    ),
    ("ussvd vector", lambda: linalg.ussvd(X[0]), ValueError, r"^matrix .*2 dim"),
    ("stream empty", lambda: aj.accumulate([]), ValueError, r"^batches .*empty stream"),
    ("stream widths", lambda: aj.accumulate([(X, Y), (X, Y[:, :1])]), ValueError, r"^X and Y"),
    ("stream rows", lambda: aj.accumulate([(X, Y[:3])]), ValueError, r"^X and Y"),
    ("stream no pair", lambda: aj.accumulate([X]), ValueError, r"^batches must hold pairs"),
    ("stream width", lambda: aj.Moments.zero(0, 1), ValueError, r"^input_width .*at least 1"),
    ("reduce data", lambda: aj.reduce(PROBLEM, WEIGHTS), aj.NotAlignedError, r"."),
    ("reduce problem", lambda: aj.reduce(X, WEIGHTS), TypeError, r"takes a problem .*ndarray"),
    (
        "reduce traced",
        traced(lambda w: aj.reduce(PROBLEM, w), WEIGHTS),
        TypeError,
        r"weights is tr",
    ),
    (
        "reduced rate",
        lambda: aj.reduced_descent(reduced(), np.ones(3), steps=2),
        ValueError,
        r"^learning_rate .*\(2,\)",
    ),
    (
        "reduced steps",
        lambda: aj.reduced_descent(reduced(), 0.1, steps=-2),
        ValueError,
        r"^steps .*at least 0",
    ),
]


def reduced():
    return aj.reduce(aj.factorization(np.eye(2)), aj.initializers.identity((2, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("call", "exception", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_bad_input_is_refused_by_name(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


class Frame:
    """Like a data frame: no array, but it knows how to become one."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


@pytest.mark.parametrize(
    "wrap", [np.ndarray.tolist, np.asarray, jnp.asarray, Frame, np.asfortranarray]
)
def test_whatever_becomes_an_array_is_taken(wrap):
    weights = [wrap(np.asarray(w)) for w in WEIGHTS]
    value = aj.risk(aj.regression(wrap(X), wrap(Y)), weights)
    np.testing.assert_allclose(value, aj.risk(PROBLEM, WEIGHTS), rtol=1e-14)


def test_integers_and_booleans_become_the_default_float():
    problem = aj.regression(np.eye(3, dtype=int), np.ones((3, 1), bool))
    weights = ([[1, 2, 3]],)
    assert aj.risk(problem, weights).dtype == np.float64
    assert (
        aj.gradient_descent(problem, weights, 1, steps=np.int64(2)).weights[0].dtype == np.float64
    )


def test_a_vector_of_targets_means_one_output():
    assert aj.regression(X, Y[:, 0]).output_width == 1


def test_float32_is_kept_whatever_the_rate_is():
    problem = aj.regression(X.astype(np.float32), Y.astype(np.float32))
    start = aj.initializers.identity((3, 2), 1.0, dtype=jnp.float32)
    assert (
        aj.gradient_descent(problem, start, np.float64(0.1), steps=2).weights[0].dtype == np.float32
    )


def test_save_at_takes_arrays_ranges_and_lists():
    for points in ([0, 3], range(0, 4, 3), np.array([0, 3]), (np.int32(0), 3)):
        assert run(save_at=points).step.tolist() == [0, 3]


@pytest.fixture
def without_float64(monkeypatch):
    monkeypatch.setattr(_validation, "_warned_about_float64", False)
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.usefixtures("without_float64")
def test_float64_data_are_narrowed_with_one_warning_where_x64_is_off():
    with pytest.warns(UserWarning, match=r"^X is float64.*jax_enable_x64"):
        problem = aj.regression(X, Y)
    assert problem.dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aj.regression(X, Y)


@pytest.mark.usefixtures("without_float64")
def test_lists_are_narrowed_without_a_warning_where_x64_is_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert aj.regression(X.tolist(), Y.tolist()).dtype == np.float32
