"""Descent by optax transformations, on the full batch and on minibatches."""

import inspect
import itertools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import alignjax as aj
from alignjax.optimizers import check_optimizer

WIDTHS = (3, 4, 2)


def data(samples=8, widths=WIDTHS, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, widths[0])), rng.normal(size=(samples, widths[-1]))


def network(seed=1):
    return aj.initializers.gaussian(jax.random.key(seed), WIDTHS, 0.4)


def equal(actual, expected, rtol=1e-11):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)


def by_hand(X, Y, weights, optimizer, steps):
    def direct(weights):
        W = weights[1] @ weights[0]
        return 0.5 * ((X @ W.T - Y) ** 2).sum() / len(X)

    slope, memory = jax.jit(jax.grad(direct)), optimizer.init(weights)
    for _ in range(steps):
        changes, memory = optimizer.update(slope(weights), memory, weights)
        weights = optax.apply_updates(weights, changes)
    return weights, memory


@pytest.mark.parametrize("samples", [2, 8], ids=["n < k_0", "n >= k_0"])
def test_plain_sgd_is_gradient_descent(samples):
    problem, save_at = aj.regression(*data(samples)), (0, 3, 10)
    run = aj.optimizer_descent(problem, network(), optax.sgd(0.1), steps=12, save_at=save_at)
    other = aj.gradient_descent(problem, network(), 0.1, steps=12, save_at=save_at)
    equal((run.weights, run.observations), (other.weights, other.observations))
    assert run.time is None
    assert (int(run.status), int(run.stopped_at)) == (aj.Status.COMPLETED, 12)


@pytest.mark.parametrize("samples", [2, 8], ids=["n < k_0", "n >= k_0"])
def test_adam_is_the_plain_optax_loop_and_its_state_is_returned(samples):
    X, Y = data(samples)
    run = aj.optimizer_descent(aj.regression(X, Y), network(), optax.adam(0.05), steps=15)
    weights, memory = by_hand(X, Y, network(), optax.adam(0.05), 15)
    equal(run.weights, weights, rtol=1e-9)
    equal(run.optimizer_state, memory, rtol=1e-9)


def test_traced_hyperparameters_in_one_vmap_equal_separate_runs():
    problem = aj.regression(*data())
    rates, momenta = jnp.array([0.01, 0.05, 0.1]), jnp.array([0.9, 0.5, 0.0])
    traces = []

    def counted(weights):
        traces.append(1)
        return aj.risk(problem, weights)

    def one(rate, b1):
        optimizer = optax.adam(rate, b1=b1)
        return aj.optimizer_descent(problem, network(), optimizer, steps=10, observe=counted)

    runs = jax.jit(jax.vmap(one))(rates, momenta)
    assert len(traces) <= 2
    for i in range(3):
        alone = one(float(rates[i]), float(momenta[i]))
        equal(jax.tree.map(lambda leaf, i=i: leaf[i], runs.weights), alone.weights, rtol=1e-10)


def test_the_derivative_in_a_rate_equals_finite_differences():
    problem = aj.regression(*data())

    def final(rate):
        run = aj.optimizer_descent(problem, network(), optax.adam(rate), steps=10)
        return run.observations["risk"][-1]

    slope, h = jax.grad(final)(0.03), 1e-6
    np.testing.assert_allclose(slope, (final(0.03 + h) - final(0.03 - h)) / (2 * h), rtol=1e-6)


def test_no_optimizer_is_traced_again_for_new_weights():
    problem, optimizer, traces = aj.regression(*data()), optax.adam(0.05), []

    def counted(weights):
        traces.append(1)
        return aj.risk(problem, weights)

    for seed in (1, 2, 3):
        aj.optimizer_descent(problem, network(seed), optimizer, steps=4, observe=counted)
        if seed == 1:
            first = len(traces)
    assert len(traces) == first


@pytest.mark.parametrize("save_at", [(0, 15), (0, 1, 4, 6, 13, 15)])
def test_every_epoch_visits_every_sample_once_whatever_is_saved(save_at):
    # One layer of n inputs that are unit vectors: the columns that moved are the batch.
    n, size = 15, 3
    problem = aj.regression(np.eye(n), np.ones(n))

    def look(weights):
        return weights[0][0]

    def descend(points):
        return aj.optimizer_descent(
            problem,
            (jnp.zeros((1, n)),),
            optax.sgd(0.3),
            steps=15,
            save_at=points,
            observe=look,
            batch_size=size,
            key=jax.random.key(0),
        )

    seen = descend(range(16)).observations
    batches = [set(np.flatnonzero(a != b)) for a, b in itertools.pairwise(seen)]
    assert all(len(batch) == size for batch in batches)
    epochs = [batches[i : i + 5] for i in (0, 5, 10)]
    for epoch in epochs:
        assert set().union(*epoch) == set(range(n))
    assert epochs[0] != epochs[1] != epochs[2]
    equal(descend(save_at).observations, seen[np.array(save_at)], rtol=1e-14)


def test_a_batch_of_all_samples_is_the_full_batch():
    problem = aj.regression(*data())
    run = aj.optimizer_descent(
        problem, network(), optax.adam(0.05), steps=9, batch_size=8, key=jax.random.key(3)
    )
    equal(run, aj.optimizer_descent(problem, network(), optax.adam(0.05), steps=9), rtol=1e-9)


@pytest.mark.parametrize(
    "make", [aj.regression, lambda X, Y: aj.classification(X, Y[:, 0] > 0, "cross_entropy")]
)
def test_keys_decide_the_run_and_vmap_over_keys_equals_single_runs(make):
    problem = make(*data(7))

    def one(key):
        return aj.optimizer_descent(
            problem, network(), optax.sgd(0.2), steps=7, batch_size=2, key=key
        ).weights

    keys = jax.random.split(jax.random.key(0), 3)
    runs, again = jax.vmap(one)(keys), one(keys[1])
    for i in range(3):
        equal([w[i] for w in runs], one(keys[i]))
    assert all(bool((a == b).all()) for a, b in zip(again, one(keys[1]), strict=True))
    assert not np.allclose(runs[0][0], runs[0][1])


def test_divergence_is_reported_and_the_state_stays_finite():
    run = aj.optimizer_descent(aj.regression(*data()), network(), optax.sgd(50.0), steps=40)
    assert int(run.status) == aj.Status.DIVERGED
    assert 0 < int(run.stopped_at) < 40
    assert all(bool(jnp.isfinite(w).all()) for w in run.weights)


def test_a_line_search_gets_the_value_and_the_function():
    problem = aj.regression(*data())
    run = aj.optimizer_descent(problem, network(), optax.lbfgs(), steps=60)
    assert int(run.status) == aj.Status.COMPLETED
    assert float(run.observations["risk"][-1] - problem.minimum_risk) < 1e-9


class Witness(NamedTuple):
    """What an optimizer was told, at its worst over a run."""

    least_value: jax.Array
    values_apart: jax.Array
    gradients_apart: jax.Array


def witness(rate):
    """Plain descent that looks at all that it is told."""

    def worst(tree, other):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
        return jnp.stack([jnp.abs(a - b).max() for a, b in pairs]).max()

    def update(slope, state, weights, *, value, grad, value_fn, obj_fn, grad_fn, **_):
        own, gradient = jax.value_and_grad(value_fn)(weights)
        apart = jnp.maximum(jnp.abs(value - own), jnp.abs(value - obj_fn(weights)))
        gradients = [worst(slope, other) for other in (grad, gradient, grad_fn(weights, 0))]
        state = Witness(
            jnp.minimum(state.least_value, value),
            jnp.maximum(state.values_apart, apart),
            jnp.maximum(state.gradients_apart, jnp.stack(gradients).max()),
        )
        return jax.tree.map(lambda g: -rate * g, slope), state

    def init(weights):
        dtype = weights[0].dtype
        return Witness(jnp.array(jnp.inf, dtype), jnp.zeros((), dtype), jnp.zeros((), dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def bottleneck(dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 10))
    Y = X @ rng.normal(size=(10, 3)) @ rng.normal(size=(3, 10)) / 5
    weights = aj.initializers.gaussian(jax.random.key(0), (10, 3, 10), 0.4)
    return aj.regression(X.astype(dtype), Y.astype(dtype)), tuple(w.astype(dtype) for w in weights)


TOLD = {
    # Down to where an expanded risk would be roundoff of either sign.
    "bottleneck": lambda: (*bottleneck(np.float32), {"steps": 300}),
    "batches": lambda: (aj.regression(*data()), network(), {"steps": 5, "batch_size": 3}),
    "batches in a span": lambda: (
        aj.classification(data(2)[0], np.array([1, -1]), "logistic"),
        (network()[0], network()[1][:1]),
        {"steps": 3, "batch_size": 1},
    ),
    "structured batches": lambda: (
        aj.regression(*data()),
        (jnp.linspace(0.1, 0.6, 6), jnp.linspace(-0.2, 0.3, 5)),
        {
            "steps": 5,
            "batch_size": 3,
            "structure": (aj.structures.Toeplitz((4, 3)), aj.structures.Toeplitz((2, 4))),
        },
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_all_that_an_optimizer_is_told_is_of_one_risk_and_it_is_never_negative(name):
    problem, weights, options = TOLD[name]()
    key = jax.random.key(0) if "batch_size" in options else None
    run = aj.optimizer_descent(problem, weights, witness(0.3), key=key, **options)
    seen, eps = run.optimizer_state, float(jnp.finfo(weights[0].dtype).eps)
    assert int(run.status) == aj.Status.COMPLETED
    assert seen.least_value >= 0
    assert seen.values_apart <= 100 * eps
    assert seen.gradients_apart <= 100 * eps


def test_polyak_steps_at_a_bottleneck_reach_the_minimum_in_float32():
    problem, weights = bottleneck(np.float32)
    run = aj.optimizer_descent(problem, weights, optax.polyak_sgd(1.0), steps=400)
    assert run.observations["risk"][-1] < 1e-11


# How to make every optimizer that the installed optax has: its required arguments by name.
MADE_WITH = {
    "learning_rate": np.float64(0.05),
    "decay": 0.9,
    "max_norm": 1.0,
    "max_delta": 1.0,
    "clipping": 0.1,
    "axis": 1,
    "threshold": 1.0,
    "eta": 0.1,
    "gamma": 0.5,
    "key": 0,
    "seed": 0,
    "fast_optimizer": optax.sgd(0.1),
    "sync_period": 2,
    "slow_step_size": 0.5,
    "optimizer": optax.sgd(0.1),
    "adv_optimizer": optax.sgd(0.05),
    "base_optimizer": optax.sgd(0.1),
    "tx": optax.sgd(0.1),
    "inner": optax.adam(0.1),
    "mask": True,
    "freeze_mask": False,
    "max_backtracking_steps": 5,
    "max_linesearch_steps": 5,
    "max_consecutive_errors": 2,
    "l2_norm_clip": 1.0,
    "noise_multiplier": 0.1,
    "step_size": np.float64(0.1),
    "step_size_fn": lambda count: -0.1 / (1 + count),
    "should_transform_fn": lambda step, *_, **__: step % 2 == 0,
    "f": lambda updates, params=None: updates,
    "measure_name": "size",
    "measure": lambda *_, **__: jnp.zeros(()),
}
NO_OPTIMIZERS = {
    "chain": "a list of others",
    "named_chain": "a list of others",
    "partition": "needs labels",
    "multi_transform": "needs labels",
    "measure_with_ema": "measures, moves nothing",
    "snapshot": "measures, moves nothing",
    "scale_by_muon": "a part of muon, which fails on its own default for more than one matrix",
}
# Wanted by some versions and refused by others.
OPTIONAL = {"learning_rate", "axis", "key"}


def factories():
    """Every public function of optax and optax.contrib that makes a transformation."""
    for module in (optax, optax.contrib):
        for name, function in sorted(vars(module).items()):
            if inspect.isfunction(function) and not name.startswith("_"):
                made = str(inspect.signature(function).return_annotation)
                if "GradientTransformation" in made and "Callable" not in made:
                    yield name, function
    yield from ((name, getattr(optax.contrib, name)) for name in ("dog", "dowg"))


def build(function):
    wanted = inspect.signature(function).parameters.values()
    return function(
        **{p.name: MADE_WITH[p.name] for p in wanted if p.name in OPTIONAL or p.default is p.empty}
    )


def test_every_transformation_of_the_installed_optax_runs_in_float32_or_is_refused_by_name():
    problem = aj.regression(*(a.astype(np.float32) for a in data()))
    weights = tuple(w.astype(jnp.float32) for w in network())
    refused, failed = {}, {}  # all failures are told at once
    for name, function in factories():
        if name in NO_OPTIMIZERS:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                optimizer = build(function)
                run = jax.eval_shape(
                    lambda w, optimizer=optimizer: aj.optimizer_descent(
                        problem, w, optimizer, steps=2
                    ),
                    weights,
                )
            except Exception as error:
                by_name = str(error).startswith("optimizer must take the gradient of a risk")
                (refused if by_name else failed)[name] = error
            else:
                assert [w.dtype for w in run.weights] == [jnp.float32] * 2, name
    assert failed == {}
    assert set(refused) == {"differentially_private_aggregate", "dpsgd"}


def sam():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    return optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2, opaque_mode=True)


def sophia():
    return optax.contrib.sophia(0.05, update_interval=2)


WITH_SAM = [sam, lambda: optax.chain(optax.clip(1.0), sam()), lambda: optax.MultiSteps(sam(), 2)]


@pytest.mark.parametrize("make", [*WITH_SAM, sophia])
def test_sam_and_sophia_get_their_own_arguments(make):
    X, Y = data()
    optimizer = make()

    def direct(weights, *_):
        return 0.5 * ((X @ (weights[1] @ weights[0]).T - Y) ** 2).sum() / len(X)

    offer = {"obj_fn": direct} if make is sophia else {"grad_fn": jax.grad(direct)}

    @jax.jit
    def step(weights, memory):
        changes, memory = optimizer.update(jax.grad(direct)(weights), memory, weights, **offer)
        return optax.apply_updates(weights, changes), memory

    weights = network()
    memory = optimizer.init(weights)
    for _ in range(3):
        weights, memory = step(weights, memory)
    run = aj.optimizer_descent(aj.regression(X, Y), network(), optimizer, steps=3)
    equal(run.weights, weights, rtol=1e-9)


def test_lookahead_keeps_its_slow_weights_in_its_state():
    X, Y = data()
    run = aj.optimizer_descent(
        aj.regression(X, Y), network(), optax.lookahead(optax.sgd(0.1), 2, 0.5), steps=5
    )
    fast = slow = network()
    for step in range(5):
        slope = jax.grad(lambda w: 0.5 * ((X @ (w[1] @ w[0]).T - Y) ** 2).sum() / len(X))(fast)
        fast = [w - 0.1 * g for w, g in zip(fast, slope, strict=True)]
        if step % 2:
            fast = slow = [s + 0.5 * (f - s) for f, s in zip(fast, slow, strict=True)]
    equal((run.weights, run.optimizer_state.slow), (tuple(fast), tuple(slow)), rtol=1e-9)


@pytest.mark.parametrize("make", [optax.contrib.schedule_free_sgd, optax.contrib.cocob])
def test_float32_weights_stay_float32_whatever_the_rate(make):
    problem = aj.regression(*(a.astype(np.float32) for a in data()))
    weights = tuple(w.astype(jnp.float32) for w in network())
    run = aj.optimizer_descent(problem, weights, make(np.float64(0.05)), steps=4)
    assert all(w.dtype == jnp.float32 for w in run.weights)
    exact = aj.optimizer_descent(aj.regression(*data()), network(), make(0.05), steps=4)
    equal(run.weights, exact.weights, rtol=1e-5)


def test_muon_reads_weights_as_out_in():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(9, 64)), rng.normal(size=(9, 4))
    start = (0.1 * rng.normal(size=(4, 64)),)
    run = aj.optimizer_descent(aj.regression(X, Y), start, aj.optimizers.muon(0.01), steps=2)

    plain, turned = optax.contrib.muon(0.01), jnp.asarray(start[0].T)

    @jax.jit
    def step(turned, memory):
        changes, memory = plain.update(X.T @ (X @ turned - Y) / 9, memory, turned)
        return turned + changes, memory

    memory = plain.init(turned)
    for _ in range(2):
        turned, memory = step(turned, memory)
    equal(run.weights[0], turned.T, rtol=1e-9)


def injected(make):
    return optax.inject_hyperparams(make)(learning_rate=0.1)


READS_IN_OUT = {
    "muon": lambda: optax.contrib.muon(0.1),
    "muon in a chain": lambda: optax.chain(optax.clip(1.0), optax.contrib.muon(0.1)),
    "muon injected": lambda: injected(optax.contrib.muon),
    "muon in an object": lambda: optax.MultiSteps(optax.contrib.muon(0.1), 2),
    "unit-wise clipping": lambda: optax.adaptive_grad_clip(0.1),
}
READS_OUT_IN = {
    "muon": lambda: aj.optimizers.muon(0.1),
    "muon in a chain": lambda: optax.chain(optax.clip(1.0), aj.optimizers.muon(0.1)),
    "muon injected": lambda: aj.optimizers.transposed(injected(optax.contrib.muon)),
    "muon in an object": lambda: optax.MultiSteps(aj.optimizers.muon(0.1), 2),
    "an object with muon": lambda: aj.optimizers.transposed(
        optax.MultiSteps(optax.contrib.muon(0.1), 2)
    ),
    "unit-wise clipping": lambda: aj.optimizers.transposed(optax.adaptive_grad_clip(0.1)),
    "adam": lambda: optax.adam(0.1),
}
# Options of optax since 0.2.6.
if "consistent_rms" in inspect.signature(optax.contrib.muon).parameters:
    READS_OUT_IN |= {
        "muon with numbers": lambda: optax.contrib.muon(
            0.1, muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(1, 0)
        ),
        "muon of one size": lambda: optax.contrib.muon(0.1, consistent_rms=0.2),
        "clipping of rows": lambda: optax.adaptive_grad_clip(0.1, axis=1),
    }


@pytest.mark.parametrize("name", READS_IN_OUT)
def test_what_reads_matrices_as_in_out_is_warned_of_by_name(name):
    with pytest.warns(UserWarning, match=r"^optimizer holds optax\..* weights are \(out, in\)"):
        check_optimizer(READS_IN_OUT[name](), network())


@pytest.mark.parametrize("name", READS_OUT_IN)
def test_what_reads_matrices_as_out_in_is_not_warned_of(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer(READS_OUT_IN[name](), network())
        check_optimizer(optax.contrib.muon(0.1), (jnp.eye(3), jnp.eye(3)))


def test_a_transposed_optimizer_is_told_of_transposed_matrices():
    problem = aj.regression(*data())
    plain, turned = witness(0.1), aj.optimizers.transposed(witness(0.1))
    runs = [aj.optimizer_descent(problem, network(), each, steps=3) for each in (plain, turned)]
    equal(runs[0].weights, runs[1].weights)
    assert runs[1].optimizer_state.values_apart <= 1e-12
    assert runs[1].optimizer_state.gradients_apart <= 1e-12
    with pytest.raises(TypeError, match="muon_weight_dimension_numbers is what"):
        aj.optimizers.muon(0.1, muon_weight_dimension_numbers=None)


def test_the_door_warns_and_refuses_before_anything_is_traced():
    problem, traces = aj.regression(*data()), []
    private = optax.contrib.dpsgd(0.1, 1.0, 0.1, 0)
    with pytest.raises(ValueError, match="optimizer must take the gradient of a risk"):
        aj.optimizer_descent(problem, network(), private, steps=1, observe=traces.append)
    with pytest.raises(ValueError, match="optimizer must take the gradient of a risk"):
        aj.optimizer_descent(problem, network(), optax.MultiSteps(private, 2), steps=1)
    assert not traces
    with pytest.warns(UserWarning, match=r"alignjax\.optimizers\.muon"):
        aj.optimizer_descent(problem, network(), optax.contrib.muon(0.1), steps=0)
