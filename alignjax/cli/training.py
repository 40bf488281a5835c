"""The ``[train]`` of a config: which descent or flow runs, and where it is looked at."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import jax
import optax

import alignjax as aj
from alignjax._validation import as_count, as_real
from alignjax.cli.axes import axis_values, check_values
from alignjax.cli.config import Section
from alignjax.problems import Problem, check_tail
from alignjax.trajectory import save_points

METHODS = ("gradient_descent", "optimizer_descent", "adaptive_descent", "gradient_flow")
OPTIMIZERS = ("sgd", "adam", "adamw", "adagrad", "rmsprop", "lion", "nadam", "lamb")
USE_RATE = ("gradient_descent", "optimizer_descent")


@dataclass(frozen=True)
class Training:
    """How weights are trained.

    Attributes:
        method: one of :data:`METHODS`.
        options: what goes to the library's function as it is.
        dim: the dimension of observations, ``"step"`` or ``"time"``.
        points: its coordinates.
        optimizer: from a learning rate to an optax transformation.
    """

    method: str
    dim: str
    points: Sequence[float]
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Callable[[Any], optax.GradientTransformation] | None = None

    @property
    def uses_seed(self) -> bool:
        """Whether minibatches are drawn."""
        return "batch_size" in self.options

    def run(
        self, problem: Problem, start: Any, rate: Any, seed: Any, observe: Callable[[Any], Any]
    ) -> aj.Trajectory:
        """Train from a start."""
        options = dict(self.options)
        if self.method == "gradient_descent":
            return aj.gradient_descent(problem, start, rate, observe=observe, **options)
        if self.method == "adaptive_descent":
            return aj.adaptive_descent(problem, start, observe=observe, **options)
        if self.method == "gradient_flow":
            return aj.gradient_flow(problem, start, observe=observe, **options)
        assert self.optimizer is not None
        if self.uses_seed:
            # Another stream than the start's, which is drawn from the seed itself.
            options["key"] = jax.random.fold_in(jax.random.key(seed), 1)
        return aj.optimizer_descent(
            problem, start, self.optimizer(rate), observe=observe, **options
        )


def read_training(section: Section, problem: Problem) -> Training:
    """Read the table; the learning rate is left to the parameters.

    Raises:
        CommandError: naming the key and the line.
    """
    method = section.choice("method", METHODS, default="gradient_descent")
    if method not in USE_RATE:
        section.refuse("learning_rate", f"{method} takes none")
    if method == "gradient_flow":
        return _flow(section, problem)
    steps = section.take("steps", int)
    with section.blame("steps"):
        steps = as_count(steps, "steps")
    points = _save_points(section, steps)
    options: dict[str, Any] = {"steps": steps, "save_at": points}
    optimizer = None
    if method == "gradient_descent":
        engines = ("auto", *aj.engines.available())
        options["engine"] = section.choice("engine", engines, default="auto")
        until = section.take("until", float, default=None)
        if until is not None:
            with section.blame("until"):
                options["until"] = as_real(until, "until", ndim=0)
            if until < 0:
                raise section.error("until", f"a risk is at least 0, got {until}")
    elif method == "adaptive_descent":
        options["rule"] = section.choice("rule", ("ball", "margin"), default="ball")
        if options["rule"] == "ball":
            section.refuse("constant", "the rule 'ball' takes none; 'margin' does")
        constant = section.take("constant", float, default=None)
        if constant is not None and not 0 < constant < math.inf:
            raise section.error("constant", f"expected a finite number above 0, got {constant}")
        options["constant"] = constant
        with section.blame("method"):
            check_tail(problem, "adaptive_descent")
    else:
        optimizer = _optimizer(section)
        size = section.take("batch_size", int, default=None)
        if size is not None:
            options["batch_size"] = _batch_size(section, problem, size)
    return Training(method, "step", points, options, optimizer)


def _save_points(section: Section, steps: int) -> tuple[int, ...]:
    given = section.take("save_at", list, dict, default=None)
    if not isinstance(given, dict):
        if given and any(isinstance(point, bool) for point in given):
            raise section.error("save_at", f"expected integers, got {given}")
        with section.blame("save_at"):
            return save_points(given, steps)
    table = section.section("save_at")
    if "log" in table:
        count = table.take("log", int)
        with table.blame("log"):
            points = aj.log_steps(steps, count)
    else:
        interval = table.take("every", int)
        with table.blame("every"):
            points = aj.every(steps, interval)
    table.finish()
    return points


def _batch_size(section: Section, problem: Problem, size: int) -> int:
    with section.blame("batch_size"):
        as_count(size, "batch_size", minimum=1)
        if problem.sample_count is None:
            raise ValueError("the problem holds moments only, and no samples to draw from")
        if size > problem.sample_count:
            raise ValueError(f"must be at most n = {problem.sample_count}, got {size}")
    return size


def _optimizer(section: Section) -> Callable[[Any], optax.GradientTransformation]:
    name = section.choice("optimizer", OPTIMIZERS, default="adam")
    options = section.section("optimizer_options")
    make = getattr(optax, name)
    given: dict[str, Any] = {}
    for key, parameter in inspect.signature(make).parameters.items():
        # Numbers and switches; what else there is (masks, dtypes) has no place in a config.
        if key in options and isinstance(parameter.default, bool):
            given[key] = options.take(key, bool)
        elif isinstance(parameter.default, (bool, int, float)) or key == "momentum":
            value = options.take(key, float, default=None)
            if value is not None:
                (given[key],) = check_values(options, key, [value], float)
    options.finish()
    with section.blame("optimizer_options"):
        make(0.1, **given)
    return lambda rate: make(rate, **given)


def _flow(section: Section, problem: Problem) -> Training:
    times = check_values(section, "times", axis_values(section, "times"), float)
    log_time = section.take("log_time", bool, default=False)
    if log_time:
        with section.blame("log_time"):
            check_tail(problem, "log_time")
    if any(b <= a for a, b in pairwise(times)) or times[0] < 0:
        raise section.error("times", "must be strictly increasing and at least 0")
    options: dict[str, Any] = {"times": times, "log_time": log_time}
    for name in ("rtol", "atol"):
        value = section.take(name, float, default=None)
        if value is not None and not 0 < value < math.inf:
            raise section.error(name, f"expected a finite number above 0, got {value}")
        options[name] = value
    solvers = ("auto", "explicit", "implicit")
    options["solver"] = section.choice("solver", solvers, default="auto")
    return Training("gradient_flow", "time", times, options)
