"""The ``[problem]`` of a config, and the files that ``certify`` is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import alignjax as aj
from alignjax.cli.axes import check_values
from alignjax.cli.config import Section
from alignjax.cli.errors import CommandError
from alignjax.cli.files import read_array, read_matrix
from alignjax.problems import Problem

FILES: Mapping[str, tuple[str, ...]] = {
    "regression": ("X", "Y"),
    "autoencoding": ("X",),
    "factorization": ("M",),
    "inversion": ("M",),
    "from_moments": ("input_moment", "cross_moment"),
    "sensing": ("matrices", "values"),
    "classification": ("X", "labels"),
}
"""Which files state a problem, by the constructor's name."""

IMAGES = ("mnist", "digits", "mnist_or_digits", "cifar10")
SYNTHETIC = ("aligned_regression", "gaussian_regression", "separable_pair")
LOSSES = ("logistic", "exponential", "cross_entropy", "squared")
Arrays = dict[str, np.ndarray]


def problem_of(kind: str, arrays: Arrays, dtype: Any, **options: Any) -> Problem:
    """Call a constructor of the library.

    Args:
        kind: its name.
        arrays: by argument.
        dtype: of the problem; None keeps that of the files.
        **options: further arguments.
    """
    given = {
        name: array if dtype is None or name == "labels" else array.astype(dtype)
        for name, array in arrays.items()
    }
    return getattr(aj, kind)(**given, **options)


def read_argument(argument: str, file: str, folder: Path | None = None) -> np.ndarray:
    """The array of one argument of a constructor, with as many dimensions as it has there.

    Raises:
        CommandError: as the readers of files do.
    """
    if argument == "matrices":
        return read_array(file, folder)
    if argument not in ("values", "labels"):
        return read_matrix(file, folder)
    vector = read_array(file, folder)
    if vector.ndim == 2 and vector.shape[1] == 1:
        vector = vector[:, 0]
    if vector.ndim != 1:
        raise CommandError(f"{file}: expected one value a sample, got shape {vector.shape}")
    # Text knows no integers, and labels are integers.
    whole = argument == "labels" and bool((vector == np.round(vector)).all())
    return vector.astype(int) if whole else vector


def read_problem(section: Section, dtype: Any) -> Problem:
    """The problem that a config states by files, or by the name of a data set.

    Raises:
        CommandError: naming the key and the line.
    """
    if "dataset" in section:
        return _from_dataset(section, dtype)
    kind = section.choice("kind", tuple(FILES), default="regression")
    folder = section.document.path.parent
    arrays = {}
    for name in FILES[kind]:
        file = section.take(name, str)
        with section.blame(name):
            arrays[name] = read_argument(name, file, folder)
    options = _options(section, kind)
    section.take("dataset", default=None)
    section.finish()
    with section.blame():
        return problem_of(kind, arrays, dtype, **options)


def _options(section: Section, kind: str) -> dict[str, Any]:
    if kind == "from_moments":
        return {"target_energy": section.take("target_energy", float)}
    if kind != "classification":
        return {}
    loss = section.choice("loss", LOSSES, default="logistic")
    return {"loss": loss, "classes": section.take("classes", int, default=None)}


def _from_dataset(section: Section, dtype: Any) -> Problem:
    name = section.choice("dataset", IMAGES + SYNTHETIC)
    if name in IMAGES:
        kind, arrays, options = _images(section, name)
    else:
        kind, arrays, options = _synthetic(section, name)
    section.finish()
    with section.blame():
        return problem_of(kind, arrays, dtype, **options)


def _images(section: Section, name: str) -> tuple[str, Arrays, dict[str, Any]]:
    """Images as rows of standardized pixels; what is learned of them is the ``kind``."""
    kinds = ("autoencoding", "regression", "classification")
    kind = section.choice("kind", kinds, default="autoencoding")
    splits = ("train", "test", "all") if name == "digits" else ("train", "test")
    split = section.choice("split", splits, default="train")
    samples = section.take("samples", int, default=None)
    pair = section.take("classes", list, default=None)
    scaling = {k: section.take(k, float, default=None) for k in ("mean", "std")}
    options: dict[str, Any] = {}
    if kind == "classification":
        loss = section.choice("loss", LOSSES, default="cross_entropy")
        options["loss"] = loss
    with section.blame("dataset"):
        try:
            images = getattr(aj.datasets, name)(split)
        except (aj.datasets.DataUnavailableError, aj.datasets.DataCorruptedError) as error:
            raise CommandError(str(error)) from error
    if pair is not None:
        known = np.unique(images.labels).tolist()
        if not pair or any(type(one) is not int or one not in known for one in pair):
            raise section.error("classes", f"expected some of {known}, got {pair}")
        if len(set(pair)) < len(pair):
            raise section.error("classes", f"names a class twice: {pair}")
        images = images[np.isin(images.labels, np.asarray(pair))]
    if samples is not None:
        if not 1 <= samples <= len(images):
            raise section.error("samples", f"expected 1 to {len(images)}, got {samples}")
        images = images[:samples]
    for key, value in scaling.items():
        if value is not None and not math.isfinite(value):
            raise section.error(key, f"expected a finite number, got {value}")
    with section.blame("std"):
        X = aj.datasets.flatten(images, **{k: v for k, v in scaling.items() if v is not None})
    if kind == "autoencoding":
        return kind, {"X": X}, options
    labels = images.labels.astype(int)
    if pair is not None:  # the chosen classes, counted in the order given
        labels = np.array([pair.index(label) for label in labels.tolist()])
    if kind == "regression":
        classes = int(labels.max()) + 1 if pair is None else len(pair)
        return kind, {"X": X, "Y": aj.datasets.one_hot(labels, classes)}, options
    if options["loss"] in ("logistic", "exponential"):
        if pair is None or len(pair) != 2:
            raise section.error("loss", f"{options['loss']} takes two classes: give classes")
        labels = 2 * labels - 1
    return kind, {"X": X, "labels": labels}, options


def _synthetic(section: Section, name: str) -> tuple[str, Arrays, dict[str, Any]]:
    (seed,) = check_values(section, "seed", [section.take("seed", int, default=0)], int)
    key = jax.random.key(seed)
    if name == "aligned_regression":
        arguments = {
            "input_spectrum": section.take("input_spectrum", list),
            "target_spectrum": section.take("target_spectrum", list),
            "n": section.take("n", int, default=None),
            "k_d": section.take("k_d", int, default=None),
            "noise": section.take("noise", float, default=0.0),
        }
        for spectrum in ("input_spectrum", "target_spectrum"):
            arguments[spectrum] = check_values(section, spectrum, arguments[spectrum], float)
    elif name == "gaussian_regression":
        arguments = {size: section.take(size, int) for size in ("n", "k_0", "k_d")}
    else:
        arguments = {size: section.take(size, int) for size in ("n", "k_0")}
        arguments["margin"] = section.take("margin", float, default=1.0)
    with section.blame("dataset"):
        data = partial(getattr(aj.datasets, name), key)(**arguments)
    X, second = np.asarray(data[0]), np.asarray(data[1])
    if name == "separable_pair":
        loss = section.choice("loss", ("logistic", "exponential"), default="logistic")
        return "classification", {"X": X, "labels": second}, {"loss": loss}
    return "regression", {"X": X, "Y": second}, {}
