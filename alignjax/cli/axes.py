"""The ``[axes]`` of a config: lists, ranges and files become values."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from alignjax.cli.config import Section
from alignjax.cli.files import read_array

SPACINGS = ("linspace", "geomspace", "logspace", "range")
MOST_VALUES = 10**7
"""Of one axis: far more than can be run, and no more than fit in memory."""


def axis_values(section: Section, name: str) -> list[Any]:
    """The values of one axis: a list, ``{geomspace = [a, b, count]}`` or its like, or a file.

    Raises:
        CommandError: naming the key and the line.
    """
    given = section.take(name, list, dict, str)
    if isinstance(given, str):
        with section.blame(name):
            return np.ravel(read_array(given, section.document.path.parent)).tolist()
    values = given if isinstance(given, list) else _spaced(section, name)
    if not values:
        raise section.error(name, "is empty: give it at least one value")
    return values


def _spaced(section: Section, name: str) -> list[Any]:
    table = section.section(name)
    forms = [form for form in SPACINGS if form in table]
    if len(forms) != 1:
        table.names()
        raise section.error(
            name, f"expected a list, a file, or a table with one of {', '.join(SPACINGS)}"
        )
    form = forms[0]
    if form == "range":
        arguments = table.take(form, int, list)
        table.finish()
        arguments = arguments if isinstance(arguments, list) else [arguments]
        if not all(type(argument) is int for argument in arguments):
            raise table.error(form, f"expected integers, got {arguments}")
        with table.blame(form):
            found = range(*arguments)
            _refuse_many(len(found))
            return list(found)
    bounds = table.take(form, list)
    table.finish()
    is_count = len(bounds) == 3 and type(bounds[2]) is int and bounds[2] >= 1
    if not is_count or not all(type(bound) in (int, float) for bound in bounds):
        raise table.error(form, f"expected [first, last, how many], got {bounds}")
    with table.blame(form), np.errstate(all="raise"):
        _refuse_many(bounds[2])
        try:
            return getattr(np, form)(*bounds).tolist()
        except FloatingPointError as error:
            raise ValueError(f"{bounds}: {error}") from error


def _refuse_many(count: int) -> None:
    if count > MOST_VALUES:
        raise ValueError(f"an axis has at most {MOST_VALUES:,} values, got {count:,}")


def check_values(section: Section, name: str, values: list[Any], kind: type) -> list[Any]:
    """The values of a parameter, which is text, a count from 0 or a number from 0.

    Raises:
        CommandError: one of them is something else.
    """
    for value in values:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind is str:
            fits, wanted = isinstance(value, str), "text"
        elif kind is int:
            is_whole = is_number and (isinstance(value, int) or value.is_integer())
            fits = is_whole and 0 <= value < 2**63
            wanted = "integers that are at least 0 and below 2^63"
        else:
            fits = is_number and 0 <= value <= sys.float_info.max
            wanted = "finite numbers that are at least 0"
        if not fits:
            raise section.error(name, f"expected {wanted}, got {value!r}")
    return [kind(value) for value in values]
