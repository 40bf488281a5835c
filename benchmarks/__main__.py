"""``python -m benchmarks [--output results.json] [--figure engine.png] [--repeats 5] [NAME ...]``.

``--read results.json`` reports what was measured before instead of measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import (
    engine,
    gpu,
    moments,
    reduced,
    scaling,
    staircase,
    structures,
    sweeps,
    table_1,
    threads,
    widths,
)
from benchmarks.report import fill, report
from benchmarks.timing import CLOCKS, Row, clock, usable_cores
from experiments.provenance import provenance

BENCHMARKS = {
    "moments": moments.run,
    "reduced": reduced.run,
    "engine": engine.run,
    "widths": widths.run,
    "single": widths.run_single,
    "gpu": gpu.run,
    "scaling": scaling.run,
    "threads": threads.run,
    "structures": structures.run,
    "staircase": staircase.run,
    "sweeps": sweeps.run,
    "table_1": table_1.run,
}


def record(
    rows: Sequence[Row], repeats: int, *, clock: str = "wall", load: float | None = None
) -> dict[str, Any]:
    """What is written as JSON: the rows and all that they depend on.

    Args:
        rows: what was measured.
        repeats: timed calls of each contender.
        clock: what times are of.
        load: how many programs wanted a core before anything was measured.
    """
    where = provenance()
    try:
        where["versions"]["torch"] = metadata.version("torch")
    except metadata.PackageNotFoundError:
        where["versions"]["torch"] = None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **where,
        "repeats": repeats,
        "clock": clock,
        "usable_cores": usable_cores(),
        "load_before": load,
        "rows": [asdict(row) for row in rows],
    }


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--output", type=Path, help="write the results as JSON here")
    parser.add_argument("--figure", type=Path, help="draw how rates grow with k here, as PNG")
    parser.add_argument("--page", type=Path, help="put the short tables into this README")
    parser.add_argument("--read", type=Path, help="measure nothing, report this JSON")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="what a timed call costs: wall time, or processor time where other programs run",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each contender")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"NAME must be among {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    if chosen.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {chosen.repeats}")
    if chosen.read and (chosen.names or chosen.output):
        parser.error("--read measures nothing: no NAME and no --output go with it")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run benchmarks or read their results, print tables, write the JSON and the figure."""
    chosen = _arguments(arguments)
    failed: list[str] = []
    if chosen.read:
        stored = json.loads(chosen.read.read_text(encoding="utf-8"))
    else:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        rows = []
        for name in chosen.names or BENCHMARKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                with clock(chosen.clock):
                    rows += BENCHMARKS[name](repeats=chosen.repeats)
            except Exception:  # hours of other benchmarks must not be lost
                traceback.print_exc()
                failed.append(name)
            stored = record(rows, chosen.repeats, clock=chosen.clock, load=load)
            if chosen.output:
                text = json.dumps(stored, indent=2) + "\n"
                chosen.output.write_text(text, encoding="utf-8")
    rows = [Row(**row) for row in stored["rows"]]
    print(report(rows))
    if chosen.page:
        page = chosen.page.read_text(encoding="utf-8")
        chosen.page.write_text(fill(page, rows), encoding="utf-8")
    if chosen.figure:
        # matplotlib is loaded only for a figure
        from benchmarks.plots import draw

        machine = (
            f"{stored['hardware']['cpu']}, cores: {stored['usable_cores']}, "
            f"{stored['clock']} time, {stored['date'][:10]}"
        )
        draw(rows, chosen.figure, machine=machine)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
