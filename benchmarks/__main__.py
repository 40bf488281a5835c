"""``python -m benchmarks [--output results.json] [--repeats 5] [NAME ...]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import engine, moments, reduced, staircase, structures, sweeps, table_1
from benchmarks.timing import Row
from experiments.provenance import provenance

BENCHMARKS = {
    "moments": moments.run,
    "reduced": reduced.run,
    "engine": engine.run,
    "structures": structures.run,
    "staircase": staircase.run,
    "sweeps": sweeps.run,
    "table_1": table_1.run,
}
COLUMNS = (
    "benchmark",
    "case",
    "contender",
    "runs",
    "steps",
    "compile s",
    "run s",
    "spread",
    "µs/step",
    "ratio",
    "difference",
    "note",
)


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table; a dash is "not measured" or "does not apply"."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return (
        row.benchmark,
        row.case,
        row.contender,
        format(row.runs, ","),
        number(row.steps, ","),
        number(row.compile_seconds, ".2f"),
        number(row.run_seconds, ".3g"),
        number(row.spread, ".2f"),
        number(row.step_microseconds, ",.1f"),
        number(row.ratio, ",.2f"),
        number(row.difference, ".0e"),
        row.note,
    )


def record(rows: Sequence[Row], repeats: int) -> dict[str, Any]:
    """What is written as JSON: the rows and all that they depend on."""
    where = provenance()
    try:
        where["versions"]["torch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        where["versions"]["torch"] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **where,
        "repeats": repeats,
        "rows": [asdict(row) for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--output", type=Path, help="write the results as JSON here")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each contender")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"NAME must be among {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    if chosen.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {chosen.repeats}")
    rows: list[Row] = []
    for name in chosen.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += BENCHMARKS[name](repeats=chosen.repeats)
    print(table(rows))
    if chosen.output:
        text = json.dumps(record(rows, chosen.repeats), indent=2)
        chosen.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
