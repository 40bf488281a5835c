"""Rows as text: the table of everything, and the engine's in short."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks.engine import CONTENDERS
from benchmarks.scaling import SERIES
from benchmarks.targets import checks
from benchmarks.threads import ONE, TWO
from benchmarks.timing import Row

__all__ = ["SECTIONS", "fill", "report", "table"]

COLUMNS = (
    "benchmark",
    "case",
    "contender",
    "runs",
    "steps",
    "compile s",
    "first call s",
    "run s",
    "spread",
    "µs/step",
    "GFLOP/s",
    "ratio",
    "difference",
    "note",
)


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table; a dash is "not measured" or "does not apply"."""
    return _markdown([COLUMNS, *map(_cells, rows)])


def rates_table(rows: Sequence[Row], benchmark: str) -> str:
    """GFLOP/s of ``engine``, ``widths`` or ``single``: a line a case, a column a contender."""
    return _pivot(rows, lambda row: _number(row.gflops, ",.3g"), benchmark)


def start_table(rows: Sequence[Row]) -> str:
    """Seconds to compile + of the first call, of the benchmark ``engine``."""

    def cell(row: Row) -> str:
        return f"{_number(row.compile_seconds, '.2g')} + {_number(row.first_seconds, '.2g')}"

    return _pivot(rows, cell, "engine")


def others_table(rows: Sequence[Row]) -> str:
    """All rows of the benchmarks that have no table of their own."""
    return table([row for row in rows if row.benchmark in OTHERS])


def target_list(rows: Sequence[Row]) -> str:
    """Targets with what was reached, a line each."""
    return "\n".join(f"- {check}" for check in checks(rows))


def scaling_table(rows: Sequence[Row]) -> str:
    """Time per unit of cost over that at the smallest size, a line a series."""
    lines = [("what grows", "sizes", "time per unit of cost, smallest size = 1")]
    for series in SERIES:
        found = [row for row in rows if (row.benchmark, row.case) == ("scaling", series)]
        sizes = " / ".join(row.contender.split()[1] for row in found)
        ratios = " / ".join(_number(row.ratio, ".2f") for row in found)
        lines.append((series, sizes, ratios))
    return _markdown(lines)


def threads_table(rows: Sequence[Row]) -> str:
    """Two cores used by one process and by two."""
    mine = [row for row in rows if row.benchmark == "threads"]
    lines = [("case", f"{ONE}, s", f"{TWO}, s", "rate of the first over that of the second")]
    for case in dict.fromkeys(row.case for row in mine):
        one, two = (row for row in mine if row.case == case)
        times = (_number(row.run_seconds, ".3g") for row in (one, two))
        lines.append((case, *times, _number(two.ratio, ".2f")))
    return _markdown(lines)


class Section(NamedTuple):
    """What is said in short: its title, the benchmarks that it is about, and how it is said."""

    title: str
    about: frozenset[str]
    text: Callable[[Sequence[Row]], str]


ENGINE, WIDTHS = frozenset({"engine"}), frozenset({"widths"})
OTHERS = frozenset({"moments", "reduced", "structures", "staircase", "sweeps", "table_1", "gpu"})
SECTIONS: Mapping[str, Section] = {
    "engine": Section("GFLOP/s", ENGINE, partial(rates_table, benchmark="engine")),
    "start": Section("Seconds to compile + of the first call after that", ENGINE, start_table),
    "widths": Section("Widths between, GFLOP/s", WIDTHS, partial(rates_table, benchmark="widths")),
    "single": Section(
        "One network, GFLOP/s", frozenset({"single"}), partial(rates_table, benchmark="single")
    ),
    "scaling": Section("Cost at k = 9", frozenset({"scaling"}), scaling_table),
    "threads": Section("Threads", frozenset({"threads"}), threads_table),
    "others": Section("Everything else", OTHERS, others_table),
    "targets": Section("Targets", ENGINE | WIDTHS | {"scaling", "threads", "gpu"}, target_list),
}
"""By the name that marks its place in a page."""


def report(rows: Sequence[Row]) -> str:
    """Everything: all rows, and the sections about what was measured."""
    measured = {row.benchmark for row in rows}
    parts = [table(rows)]
    parts += [f"{s.title}:\n\n{s.text(rows)}" for s in SECTIONS.values() if s.about & measured]
    return "\n\n".join(parts)


def fill(page: str, rows: Sequence[Row]) -> str:
    """The page with each section between its ``<!-- name -->`` and ``<!-- end -->`` made anew.

    Raises:
        ValueError: if the page has no place for a section.
    """
    measured = {row.benchmark for row in rows}
    for name, section in SECTIONS.items():
        head, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"the page has no '<!-- {name} -->' that an '<!-- end -->' follows")
        text = section.text(rows) if section.about & measured else "Not measured."
        page = f"{head}{mark}\n{text}\n\n{end}{tail}"
    return page


def _pivot(rows: Sequence[Row], cell: Callable[[Row], str], benchmark: str) -> str:
    mine = [row for row in rows if row.benchmark == benchmark]
    names = [name for name in CONTENDERS if any(row.contender == name for row in mine)]
    lines = [("case", "batch", *names)]
    for case in dict.fromkeys(row.case for row in mine):
        found = {row.contender: row for row in mine if row.case == case}
        runs = next(iter(found.values())).runs
        cells = (cell(found[name]) if name in found else "–" for name in names)
        lines.append((case, format(runs, ","), *cells))
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.benchmark,
        row.case,
        row.contender,
        format(row.runs, ","),
        _number(row.steps, ","),
        _number(row.compile_seconds, ".2f"),
        _number(row.first_seconds, ".3g"),
        _number(row.run_seconds, ".3g"),
        _number(row.spread, ".2f"),
        _number(row.step_microseconds, ",.1f"),
        _number(row.gflops, ",.3g"),
        _number(row.ratio, ",.2f"),
        _number(row.difference, ".0e"),
        row.note,
    )
