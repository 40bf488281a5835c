"""What arrays are refused wherever they come in, and which are taken as they are meant."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import alignjax as aj

MODULES = [
    "",
    ".initializers",
    ".metrics",
    ".closed_forms",
    ".structures",
    ".theory.alignment",
    ".theory.margin",
    ".theory.sequential",
    ".datasets",
    ".bases",
]
X = np.random.default_rng(0).normal(size=(6, 2))
Y = np.random.default_rng(1).normal(size=(6, 2))
LABELS = np.where(np.arange(6) % 2, 1.0, -1.0)
SEPARABLE = LABELS[:, None] * np.array([[1.0, 2.0], [1.0, -1.0]] * 3)
EYE = np.eye(2)
WEIGHTS = (0.5 * EYE, 0.5 * EYE)
CLASSIFIER = (0.5 * EYE, np.full((1, 2), 0.5))
PROBLEM = aj.factorization(np.diag([2.0, 1.0]))
SIGNS = aj.classification(SEPARABLE, LABELS)
CERTIFICATE = aj.theory.alignment.certify(PROBLEM)
MARGIN = aj.theory.margin.max_margin(SEPARABLE, LABELS)
LATE = aj.theory.margin.late_times(SEPARABLE, LABELS, MARGIN)
REDUCED = aj.reduce(PROBLEM, WEIGHTS)
MODES = np.array([0.3, 0.2])
LAYERS = np.full((2, 2), 0.5)
KEY = jax.random.key(0)

# What a parameter of this name is given, whatever the function.
BY_NAME = {
    "Q": EYE,
    "M": np.diag([2.0, 1.0]),
    "P": np.diag([2.0, 1.0]),
    "X": X,
    "Y": Y,
    "coefficients": (np.ones(2), np.ones(2)),
    "cross_moment": EYE,
    "delta": MODES,
    "deltas": MODES,
    "depth": 2,
    "factors": (MODES, MODES),
    "gradients": WEIGHTS,
    "input": np.ones(2),
    "input_moment": EYE,
    "input_spectrum": np.ones(2),
    "inputs": X,
    "key": KEY,
    "labels": LABELS,
    "late": LATE,
    "layer": MODES,
    "learning_rate": np.array(0.1),
    "loss": "logistic",
    "matrices": (EYE, 2 * EYE),
    "matrix": EYE,
    "optimizer": optax.sgd(0.1),
    "problem": PROBLEM,
    "product": MODES,
    "radius": np.array(1.0),
    "save_at": np.array([0, 1]),
    "scale": np.array(0.5),
    "singular_values": LAYERS,
    "spectra": CERTIFICATE,
    "start": MODES,
    "step": np.array(1),
    "steps": 1,
    "structure": aj.structures.Diagonal(2),
    "target": np.array([2.0, 1.0]),
    "target_energy": np.array(9.0),
    "target_spectrum": MODES,
    "targets": Y,
    "time": np.array([0.0, 1.0]),
    "times": np.array([0.0, 1.0]),
    "values": np.ones(6),
    "weights": WEIGHTS,
    "widths": np.array([2, 2, 2]),
    "x": X,
}
# And where a name means another thing, or a parameter may be left out.
HERE = {
    "adaptive_descent": {"problem": SIGNS, "weights": CLASSIFIER, "constant": np.array(0.1)}
    | {"rule": "margin"},
    "aligned": {"problem_or_certificate": PROBLEM},
    "aligned_interpolation": {"structure": aj.structures.Diagonal(2), "depth": 2},
    "aligned_two_layer_flow": {"certificate": CERTIFICATE},
    "alignment_bound": {"start": CLASSIFIER, "weights": CLASSIFIER, "start_risk": np.array(0.1)},
    "expand": {"reduced": REDUCED},
    "first_layer_growth": {"problem": SIGNS, "weights": CLASSIFIER, "direction": np.ones(2)},
    "flatten": {"images": np.zeros((2, 2, 2), np.uint8)},
    "gradient_descent": {"until": np.array(0.1)},
    "gradient_flow": {"rtol": np.array(1e-5), "atol": np.array(1e-5)},
    "invariance": {"start": WEIGHTS, "bases": None},
    "late_times": {"X": SEPARABLE, "found": MARGIN},
    "linear_descent": {"start": EYE, "steps": np.array([0, 1])},
    "linear_flow": {"start": EYE},
    "log_risk": {"problem": SIGNS, "weights": CLASSIFIER},
    "margin": {"problem": SIGNS, "weights": CLASSIFIER},
    "matrices": {"state": (np.ones(2), np.ones(2))},
    "max_margin": {"X": SEPARABLE},
    "one_hot": {"labels": np.array([0, 1]), "classes": 2},
    "outputs": {"problem": SIGNS, "weights": CLASSIFIER},
    "reduced_descent": {"reduced": REDUCED},
    "sensing": {"matrices": X.reshape(3, 2, 2), "values": np.ones(3)},
    "smoothness": {"input_norm": np.array(1.0)},
    "strong_invariance": {"start": WEIGHTS, "bases": None},
    "support_spread": {"X": SEPARABLE, "found": MARGIN},
}


def public_functions():
    """Every public function of the package, once, by name."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"alignjax{name}")
        for public in module.__all__:
            value = getattr(module, public)
            if not inspect.isclass(value) and inspect.isfunction(inspect.unwrap(value)):
                found.setdefault(value, public)
    # Of what stands below the public surface, what people call all the same.
    below = {aj.linalg: ("ussvd", "joint_diagonalize"), aj.problems: ("outputs", "smoothness")}
    for module, names in below.items():
        found |= {getattr(module, name): name for name in names}
    return {name: function for function, name in found.items()}


FUNCTIONS = public_functions()


def is_array(value):
    return isinstance(value, np.ndarray) or (isinstance(value, tuple) and is_array(value[0]))


def arguments(name):
    """Arguments of a function, and the names of those that are arrays."""
    here, given = HERE.get(name, {}), {}
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        known = here.get(parameter.name, BY_NAME.get(parameter.name))
        if parameter.default is parameter.empty or is_array(known) or parameter.name in here:
            given[parameter.name] = known
    return given, [parameter for parameter, value in given.items() if is_array(value)]


TAKE_ARRAYS = sorted(name for name in FUNCTIONS if arguments(name)[1])


def masked(value):
    if isinstance(value, tuple):
        return (*value[:-1], masked(value[-1]))
    return np.ma.array(value, mask=np.arange(value.size).reshape(value.shape) == value.size - 1)


def as_long_double(value):
    if isinstance(value, tuple):
        return (*value[:-1], as_long_double(value[-1]))
    return value.astype(np.longdouble)


def test_every_parameter_that_is_an_array_is_looked_at():
    def is_annotated(parameter):
        return any(f"{kind}[Array" in str(parameter.annotation) for kind in ("Float", "Shaped"))

    forgotten = {
        f"{name}({parameter.name})"
        for name, function in FUNCTIONS.items()
        for parameter in inspect.signature(function).parameters.values()
        if is_annotated(parameter) and parameter.name not in arguments(name)[1]
    }
    # Bases are told from the start, or given; the rest are pytrees of arrays that came out of here.
    assert forgotten == {"invariance(bases)", "strong_invariance(bases)"}
    assert len(TAKE_ARRAYS) > 70


@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_masked_entries_are_refused_by_name_in_every_array(name):
    given, arrays = arguments(name)
    for parameter in arrays:
        with pytest.raises(ValueError, match=r"masked") as error:
            FUNCTIONS[name](**given | {parameter: masked(given[parameter])})
        called = {"coefficients": "weights"} if name == "check_coefficients" else {}
        assert str(error.value).startswith(called.get(parameter, parameter)), parameter


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here")
@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_long_doubles_are_refused_by_name_in_every_array(name):
    given, arrays = arguments(name)
    for parameter in arrays:
        with pytest.raises(TypeError) as error:
            FUNCTIONS[name](**given | {parameter: as_long_double(given[parameter])})
        called = {"coefficients": "weights"} if name == "check_coefficients" else {}
        assert str(error.value).startswith(called.get(parameter, parameter)), parameter
        if parameter not in ("widths", "save_at", "images", "labels") or name == "classification":
            assert str(np.dtype(np.longdouble)) in str(error.value), parameter


class FromFile:
    """Like a variable of a file: asked for an array, it gives a masked one."""

    def __array__(self, dtype=None, copy=None):
        return masked(X)


MOMENTS = aj.Moments.zero(2, 2)
IMAGES = np.zeros((2, 2, 2), np.uint8)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: aj.regression(FromFile(), Y), "X"),
        (lambda: aj.regression(list(masked(X)), Y), "X"),
        (lambda: aj.regression([[1.0, np.ma.masked]], Y[:1]), "X"),
        (lambda: aj.sensing([EYE, masked(EYE)], [1.0, 2.0]), "matrices"),
        (lambda: aj.metrics.invariance(WEIGHTS, bases=(EYE, EYE, masked(EYE))), "bases"),
        (lambda: aj.metrics.strong_invariance(WEIGHTS, bases=(EYE, EYE, masked(EYE))), "bases"),
        (lambda: MOMENTS.update(X, masked(Y)), "Y"),
        (lambda: aj.accumulate([(masked(X), Y)]), "X"),
        (lambda: aj.structures.Sparse(masked(EYE)), "mask"),
        (lambda: aj.structures.Basis([EYE, masked(np.ones((2, 2)))]), "matrices"),
        (lambda: aj.structures.Diagonal(2).apply([1.0, 2.0], masked(X)), "x"),
        (lambda: aj.structures.Diagonal(2).coefficients(masked(EYE)), "matrix"),
        (lambda: aj.metrics.SpectralTracker.init({"W": masked(EYE)}), "tree"),
        (lambda: aj.sweep(lambda a: {"a": a}, {"a": masked(MODES)}), "axis 'a'"),
        (lambda: aj.datasets.Images(masked(IMAGES), np.zeros(2, np.uint8), "", ""), "images"),
    ],
)
def test_masked_entries_are_refused_in_whatever_holds_them(call, name):
    with pytest.raises(ValueError, match=rf"^{name}.*masked"):
        call()


def test_a_masked_array_that_hides_nothing_is_an_array():
    problem = aj.regression(np.ma.array(X), np.ma.array(Y, mask=False))
    assert aj.risk(problem, (EYE,)) == aj.risk(aj.regression(X, Y), (EYE,))


def test_differences_of_times_are_no_numbers():
    with pytest.raises(TypeError, match=r"^X must hold real numbers.*timedelta64"):
        aj.regression(X.astype("m8[s]"), Y)


def off(outputs, label):
    return (outputs.sum() - label) ** 2


@pytest.mark.parametrize("kind", ["f4", "f8", "i8"])
def test_the_other_byte_order_is_taken_as_it_is_meant(kind):
    native = np.arange(1, 13).reshape(6, 2).astype(kind)
    other = native.astype(native.dtype.newbyteorder("S"))
    assert not other.dtype.isnative
    for made in (lambda a: aj.regression(a, a), lambda a: aj.classification(a, a[:, 0] % 2, off)):
        expected, got = (jax.tree.leaves(made(values)) for values in (native, other))
        assert all(map(np.array_equal, expected, got))
        assert [a.dtype for a in expected] == [a.dtype for a in got]
    rate = np.array([0.1, 0.2], ">f8")
    run = aj.gradient_descent(PROBLEM, (EYE.astype(">f8"), EYE), rate, steps=1)
    np.testing.assert_allclose(run.weights[0], EYE + 0.1 * np.diag([1.0, 0.0]) / 2, rtol=1e-12)
    spectrum = native[:2, 0].astype(">f8")
    data = [aj.datasets.aligned_regression(KEY, s, s) for s in (spectrum, spectrum.astype(float))]
    assert all(map(jnp.array_equal, *data))
    assert aj.datasets.one_hot(np.array([1, 0], ">i4"), 2).tolist() == [[0, 1], [1, 0]]
