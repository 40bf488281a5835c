"""A config as a whole: a function of one point, fixed parameters, and axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import alignjax as aj
from alignjax.bases import Certificate
from alignjax.cli import observe
from alignjax.cli.axes import axis_values, check_values
from alignjax.cli.config import Document, Section
from alignjax.cli.errors import USAGE, CommandError
from alignjax.cli.files import read_weights
from alignjax.cli.problem import read_problem
from alignjax.cli.training import USE_RATE, Training, read_training
from alignjax.problems import Problem, check_fit

INITIALIZERS = ("gaussian", "orthogonal", "identity", "balanced", "aligned")
STATIC = ("depth", "width", "initializer")
"""Parameters that are known at compile time: one program for each value."""
KINDS: Mapping[str, type] = {
    "learning_rate": float,
    "scale": float,
    "seed": int,
    "depth": int,
    "width": int,
    "initializer": str,
}
HOME = {"learning_rate": "train", "depth": "network", "width": "network"}
"""The table that holds a parameter's one value; ``start`` holds the others."""
ENDING = ("status", "stopped_at")
"""What a run reports beside its observations."""
RATE_OF_LAYER = re.compile(r"learning_rate_[1-9][0-9]*")


@dataclass(frozen=True)
class Start:
    """Where training starts: an initializer's arguments, or weights from a file."""

    dtype: Any
    inputs: int
    outputs: int
    widths: tuple[int, ...] | None = None
    weights: tuple[jax.Array, ...] | None = None
    singular_values: tuple[float, ...] | None = None
    certificate: Certificate | None = None

    def __call__(self, point: Mapping[str, Any]) -> tuple[jax.Array, ...]:
        """The weights of one point."""
        if self.weights is not None:
            return self.weights
        widths, scale = self.layer_widths(point), jnp.asarray(point["scale"], self.dtype)
        initializer = point["initializer"]
        if initializer == "identity":
            return aj.initializers.identity(widths, scale, dtype=self.dtype)
        key = jax.random.key(point["seed"])
        if initializer != "aligned":
            make = getattr(aj.initializers, initializer)
            return make(key, widths, scale, dtype=self.dtype)
        modes = jnp.ones(min(widths), self.dtype)
        if self.singular_values is not None:
            modes = jnp.asarray(self.singular_values, self.dtype)
        values = jnp.broadcast_to(scale * modes, (len(widths) - 1, modes.shape[0]))
        return aj.initializers.aligned(key, self.certificate, widths, values)

    def layer_widths(self, point: Mapping[str, Any]) -> tuple[int, ...]:
        """``(k_0, ..., k_d)``."""
        if self.widths is not None:
            return self.widths
        width = point.get("width") or max(self.inputs, self.outputs)
        return (self.inputs, *[width] * (point["depth"] - 1), self.outputs)


@dataclass(frozen=True)
class Simulation:
    """What a config says.

    Attributes:
        problem: what is learned.
        start: from a point to weights.
        training: from weights to a trajectory.
        observations: what is reported.
        fixed: parameters with one value.
        axes: the swept ones by name, static ones too, in the order given.
        zipped: groups of axes that run together.
        units: by name.
        store: the store's folder, or None.
        chunk: the most runs in a block, or None.
        path: the config's file.
    """

    problem: Problem
    start: Start
    training: Training
    observations: tuple[observe.Observation, ...]
    fixed: Mapping[str, Any]
    axes: Mapping[str, list[Any]]
    zipped: tuple[tuple[str, ...], ...]
    units: Mapping[str, str]
    store: Path | None
    chunk: int | None
    path: Path

    def train(self, **point: Any) -> aj.Trajectory:
        """One run, whole."""
        point = {**self.fixed, **point}
        start = self.start(point)
        rates = [name for name in point if RATE_OF_LAYER.fullmatch(name)]
        rate = point.get("learning_rate")
        if rates:
            by_layer = [point.get(f"learning_rate_{i + 1}", rate) for i in range(len(start))]
            rate = jnp.stack([jnp.asarray(r, self.start.dtype) for r in by_layer])
        look = observe.observer(self.observations, self.problem, start)
        return self.training.run(self.problem, start, rate, point.get("seed"), look)

    def run(self, **point: Any) -> dict[str, jax.Array]:
        """One run as a sweep keeps it: observations, and how it ended."""
        trajectory = self.train(**point)
        ending = {"status": trajectory.status, "stopped_at": trajectory.stopped_at}
        return {**trajectory.observations, **ending}

    def grid(self) -> tuple[dict[str | tuple[str, ...], Any], dict[str, list[Any]]]:
        """The axes and static axes as a sweep takes them."""
        axes: dict[str | tuple[str, ...], Any] = {}
        for name, values in self.axes.items():
            group = next((g for g in self.zipped if name in g), None)
            if group is not None:
                axes[group] = tuple(self.axes[member] for member in group)
            elif name not in STATIC:
                axes[name] = values
        return axes, {n: v for n, v in self.axes.items() if n in STATIC}

    def dims(self) -> dict[str, Any]:
        """The dimensions of observations and their coordinates."""
        start = jax.eval_shape(lambda: self.start({**self.fixed, **self.first()}))
        found: dict[str, Any] = {}
        for one in self.observations:
            found[one.name] = {self.training.dim: list(self.training.points)}
            if one.dim is not None:
                found[one.name][one.dim] = list(range(1, self.shape(one, start)[0] + 1))
        return found

    def shape(self, one: observe.Observation, start: Any) -> tuple[int, ...]:
        """The shape of an observation of weights that are known by shape, without computing it."""
        return jax.eval_shape(lambda w: one.value(self.problem, w, w), start).shape

    def first(self) -> dict[str, Any]:
        """The first value of every axis."""
        return {name: values[0] for name, values in self.axes.items()}


def read_simulation(
    document: Document, dtype: str | None = None, given: Mapping[str, str] | None = None
) -> Simulation:
    """Read a config and check all of it that can be checked before anything runs.

    Args:
        document: the config.
        dtype: instead of that of the config.
        given: values, as text, that replace axes or fixed values of parameters.

    Raises:
        CommandError: naming the key and the line.
    """
    root = document.root
    configured = root.choice("dtype", ("float32", "float64"), default="float64")
    sections = {name: root.section(name) for name in ("problem", "network", "start", "train")}
    axes, sweep, units = (root.section(name) for name in ("axes", "sweep", "units"))
    asked = root.take("observe", list, default=["risk"])
    if "problem" not in root:
        raise root.error(None, "needs the table [problem]")
    root.finish()
    precision = jnp.dtype(dtype or configured)
    problem = read_problem(sections["problem"], precision)
    training = read_training(sections["train"], problem)
    swept = _read_axes(axes, training)
    fixed = _read_fixed(sections, swept, training)
    _replace(swept, fixed, given or {}, sections, axes)
    start = _read_start(sections, problem, precision, fixed, swept, axes)
    for section in sections.values():
        section.finish()
    _check_rates(axes, sections["train"], swept, fixed, start)
    zipped = _read_zipped(sweep, swept)
    store = sweep.take("store", str, default=None)
    chunk = sweep.take("chunk", int, default=None)
    if chunk is not None and chunk < 1:
        raise sweep.error("chunk", f"must be at least 1, got {chunk}")
    sweep.finish()
    observations = _read_observations(root, asked, swept)
    simulation = Simulation(
        problem=problem,
        start=start,
        training=training,
        observations=observations,
        fixed=fixed,
        axes=swept,
        zipped=zipped,
        units=_read_units(units, swept, observations),
        store=None if store is None else document.path.parent / Path(store).expanduser(),
        chunk=chunk,
        path=document.path,
    )
    _try(simulation, sections, root)
    return simulation


def _read_axes(section: Section, training: Training) -> dict[str, list[Any]]:
    swept = {}
    for name in KINDS:
        if name in section:
            swept[name] = _checked(section, name, axis_values(section, name))
        else:
            section.take(name, default=None)
    for name in section.content:
        if RATE_OF_LAYER.fullmatch(name):
            swept[name] = _checked(section, name, axis_values(section, name))
    if training.method not in USE_RATE:
        for name in swept:
            if name.startswith("learning_rate"):
                raise section.error(name, f"{training.method} takes no learning rate")
    section.finish()
    # In the order of the config, which is that of the dimensions.
    return {name: swept[name] for name in section.content if name in swept}


def _checked(section: Section, name: str, values: list[Any]) -> list[Any]:
    """The values of a parameter, of its kind and in its range.

    Raises:
        CommandError: at its key.
    """
    values = check_values(section, name, values, KINDS.get(name, float))
    if name in ("depth", "width") and min(values) < 1:
        raise section.error(name, f"must be at least 1, got {min(values)}")
    for value in values if name == "initializer" else ():
        if value not in INITIALIZERS:
            raise section.unknown(name, value, INITIALIZERS)
    return values


def _read_fixed(
    sections: Mapping[str, Section], swept: Mapping[str, Any], training: Training
) -> dict[str, Any]:
    """The parameters that have one value. Those of the start are read with it."""
    fixed: dict[str, Any] = {}
    for name, kind in KINDS.items():
        section = sections[HOME.get(name, "start")]
        kinds = (float, list) if name == "learning_rate" else (kind,)
        value = section.take(name, *kinds, default=None)
        if value is None:
            continue
        if name in swept:
            raise section.error(name, "has one value here and is an axis too: drop one of them")
        if isinstance(value, list):
            fixed[name] = _checked(section, name, value)
        else:
            fixed[name] = _checked(section, name, [value])[0]
    by_layer = any(RATE_OF_LAYER.fullmatch(name) for name in swept)
    if training.method in USE_RATE and not by_layer and "learning_rate" not in {**fixed, **swept}:
        raise sections["train"].missing("learning_rate", ", or such an axis")
    return fixed


def _replace(
    swept: dict[str, list[Any]],
    fixed: dict[str, Any],
    given: Mapping[str, str],
    sections: Mapping[str, Section],
    axes: Section,
) -> None:
    """Put values from the command line in the place of axes and fixed ones."""
    for name, text in given.items():
        if name not in KINDS and not RATE_OF_LAYER.fullmatch(name):
            raise CommandError(
                f"--set {name}: there are only {', '.join(KINDS)}, learning_rate_1, ...", USAGE
            )
        kind = KINDS.get(name, float)
        section = axes if name in swept else sections[HOME.get(name, "start")]
        try:
            value = kind(text)
        except ValueError as error:
            raise CommandError(
                f"--set {name}: expected {kind.__name__}, got {text!r}", USAGE
            ) from error
        swept.pop(name, None)
        try:
            fixed[name] = _checked(section, name, [value])[0]
        except CommandError as error:
            raise CommandError(f"--set {name}={text}: {error}", USAGE) from error


def _read_start(
    sections: Mapping[str, Section],
    problem: Problem,
    dtype: Any,
    fixed: dict[str, Any],
    swept: Mapping[str, Any],
    axes: Section,
) -> Start:
    network, start = sections["network"], sections["start"]
    outputs = problem.output_width
    assert outputs is not None  # of the losses that have a name
    ends = (problem.input_width, outputs)
    widths = network.take("widths", list, default=None)
    file = start.take("file", str, default=None)
    modes = start.take("singular_values", list, default=None)
    if file is not None:
        for name in ("initializer", "scale", "depth", "width"):
            _refuse_both(name, "start.file gives the weights", sections, swept, axes)
        network.refuse("widths", "start.file gives the weights")
        start.refuse("singular_values", "start.file gives the weights")
        with start.blame("file"):
            layers = read_weights(file, start.document.path.parent)
            weights = tuple(jnp.asarray(layer, dtype) for layer in layers)
            check_fit(problem, weights[0].shape[1], weights[-1].shape[0], "weights", len(weights))
        return Start(dtype, *ends, weights=weights)
    if "initializer" not in swept:
        fixed.setdefault("initializer", "gaussian")
    if "scale" not in {**fixed, **swept}:
        raise start.missing("scale", ", or such an axis")
    chosen = swept.get("initializer") or [fixed["initializer"]]
    is_random = any(name != "identity" for name in chosen) or "batch_size" in sections["train"]
    if "seed" in swept and not is_random:
        raise axes.error("seed", "nothing is random: the initializer 'identity' takes no seed")
    if is_random and "seed" not in swept:
        fixed.setdefault("seed", 0)
    if widths is not None:
        for name in ("depth", "width"):
            _refuse_both(name, "network.widths gives it", sections, swept, axes)
        with network.blame("widths"):
            widths = aj._validation.as_widths(widths)
            check_fit(problem, widths[0], widths[-1], "widths", len(widths) - 1)
    elif "depth" not in {**fixed, **swept}:
        raise network.missing("depth", ", or 'widths', or an axis depth")
    certificate = None
    if modes is not None and list(chosen) != ["aligned"]:
        raise start.error("singular_values", "only the initializer 'aligned' takes them")
    if modes is not None:
        modes = tuple(check_values(start, "singular_values", modes, float))
    if "aligned" in chosen:
        home, key = (axes, "initializer") if "initializer" in swept else (start, "initializer")
        with home.blame(key):
            certificate = aj.theory.alignment.certify(problem)
            if not certificate.holds:
                raise ValueError(
                    f"the data have no common bases (verdict {certificate.verdict!r}, residual "
                    f"{certificate.residual:.3g}), so no start is aligned with them"
                )
    return Start(dtype, *ends, widths=widths, singular_values=modes, certificate=certificate)


def _refuse_both(
    name: str, why: str, sections: Mapping[str, Section], swept: Mapping[str, Any], axes: Section
) -> None:
    sections[HOME.get(name, "start")].refuse(name, why)
    if name in swept:
        raise axes.error(name, why)


def _check_rates(
    axes: Section,
    train: Section,
    swept: Mapping[str, Any],
    fixed: Mapping[str, Any],
    start: Start,
) -> None:
    """Rates ``learning_rate_i`` need one depth, ``i`` up to it, and a rate for each other layer."""
    rates = [name for name in (*swept, *fixed) if RATE_OF_LAYER.fullmatch(name)]
    for name in rates:
        section = axes if name in swept else train
        if "depth" in swept or "learning_rate" in swept:
            raise section.error(name, "goes with one depth, and without an axis learning_rate")
        layers = len(start.weights or start.layer_widths(fixed)[1:])
        if int(name.rpartition("_")[2]) > layers:
            raise section.error(name, f"the network has {layers} layers")
        absent = [i + 1 for i in range(layers) if f"learning_rate_{i + 1}" not in rates]
        if absent and not isinstance(fixed.get("learning_rate"), float):
            raise section.error(
                name,
                f"layer {absent[0]} has no rate: give learning_rate_{absent[0]}, or one number as "
                f"train.learning_rate for the layers without an axis",
            )


def _read_units(
    section: Section, swept: Mapping[str, Any], observations: Sequence[observe.Observation]
) -> dict[str, str]:
    """Units of axes and outputs; one of a parameter that is no axis here is not used."""
    outputs = (*(one.name for one in observations), *ENDING)
    rates = [name for name in section.content if RATE_OF_LAYER.fullmatch(name)]
    given = {name: section.take(name, str, default=None) for name in (*KINDS, *rates, *outputs)}
    section.finish()
    return {n: unit for n, unit in given.items() if unit is not None and n in (*swept, *outputs)}


def _read_zipped(sweep: Section, swept: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    groups = []
    seen: set[str] = set()
    for group in sweep.take("zip", list, default=[]):
        names = group if isinstance(group, list) else []
        if len(names) < 2 or any(
            not isinstance(name, str) or name not in swept or name in STATIC for name in names
        ):
            raise sweep.error(
                "zip", f"expected lists of two or more axes that are not static, got {group!r}"
            )
        lengths = {name: len(swept[name]) for name in names}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} has {count}" for name, count in lengths.items())
            raise sweep.error("zip", f"zipped axes must have equal lengths, but {told}")
        if seen & set(names) or len(set(names)) < len(names):
            raise sweep.error("zip", f"names an axis twice: {group!r}")
        seen.update(names)
        groups.append(tuple(names))
    return tuple(groups)


def _read_observations(
    root: Section, asked: Sequence[Any], swept: Mapping[str, Any]
) -> tuple[observe.Observation, ...]:
    known = observe.names()
    if not asked:
        raise root.error("observe", "is empty: name at least one of " + ", ".join(known))
    if len(set(map(str, asked))) < len(asked):
        raise root.error("observe", f"names something twice: {asked}")
    found = []
    for name in asked:
        if name not in known:
            raise root.unknown("observe", str(name), known)
        one = observe.observation(name)
        if one.dim in ("layer", "vertex") and "depth" in swept:
            raise root.error(
                "observe",
                f"{name!r} has one value a {one.dim}, and depth is an axis: ask for {name}_min, "
                f"{name}_max or {name}_mean",
            )
        found.append(one)
    return tuple(found)


def _try(simulation: Simulation, sections: Mapping[str, Section], root: Section) -> None:
    """Let the library check the start and each observation, without computing them."""
    _refuse_arbitrary_bases(simulation, root)
    start_section = sections["start"]
    for depth in simulation.axes.get("depth", [simulation.fixed.get("depth")]):
        point = {**simulation.fixed, **simulation.first(), "depth": depth}
        with start_section.blame():
            start = jax.eval_shape(lambda point=point: simulation.start(point))
        for one in simulation.observations:
            with root.blame("observe", one.name):
                simulation.shape(one, start)
        rate = simulation.fixed.get("learning_rate")
        if isinstance(rate, list) and len(rate) != len(start):
            raise sections["train"].error(
                "learning_rate", f"expected one rate or {len(start)}, got {len(rate)}"
            )


def _refuse_arbitrary_bases(simulation: Simulation, root: Section) -> None:
    """Invariance compares with the start's singular vectors, which repeated values leave open."""
    chosen = simulation.axes.get("initializer") or [simulation.fixed.get("initializer")]
    modes = simulation.start.singular_values
    repeats = [name for name in chosen if name in ("orthogonal", "identity")]
    if "aligned" in chosen and (modes is None or len(set(modes)) < len(modes)):
        repeats.append("aligned")
    for one in simulation.observations:
        if repeats and one.name.startswith(("invariance", "strong_invariance")):
            raise root.error(
                "observe",
                f"{one.name} compares with singular vectors of the start, and those of "
                f"{repeats[0]!r} are arbitrary where its singular values repeat; 'aligned' with "
                f"different start.singular_values has vectors of its own",
            )
