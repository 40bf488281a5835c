"""``alignjax simulate`` and ``alignjax sweep``."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import alignjax as aj
from alignjax.cli.config import Document
from alignjax.cli.console import duration, number, show, show_json, show_pairs, show_table, size
from alignjax.cli.errors import CANNOT_WRITE, USAGE, CommandError, told
from alignjax.cli.files import check_output, write_arrays
from alignjax.cli.simulation import Simulation, read_simulation
from alignjax.sweeps import Forecast, StoreMismatchError, StoreWriteError, forecast

SHOWN_ROWS = 25
ENDINGS = {
    aj.Status.COMPLETED: "completed",
    aj.Status.DIVERGED: "diverged: frozen at the last state that was finite",
    aj.Status.REACHED: "reached the risk asked for by until",
    aj.Status.UNFINISHED: "unfinished: the solver spent all its steps",
}


def simulate_config(
    path: Path, given: Sequence[str], dtype: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Run one point of a config."""
    if out is not None:
        check_output(out, (".npz", ".csv"))
    simulation = read_simulation(Document(path), dtype, _assignments(given))
    if simulation.axes:
        first = next(iter(simulation.axes))
        raise CommandError(
            f"{path}: simulate runs one point, but {', '.join(simulation.axes)} are axes: choose "
            f"values, as in --set {first}={simulation.axes[first][0]}, or use alignjax sweep",
            USAGE,
        )
    run = simulation.train()
    columns = _columns(simulation, run)
    status = aj.Status(int(run.status))
    ending = {"status": status.name.lower(), "stopped_at": int(run.stopped_at)}
    if out is not None and out.suffix.lower() == ".csv":
        _write_csv(out, columns)
    elif out is not None:
        layers = {f"W_{i + 1}": layer for i, layer in enumerate(run.weights)}
        points = {simulation.training.dim: simulation.training.points}
        write_arrays(out, {**points, **run.observations, **layers, **ending})
    if as_json:
        show_json({**ending, **columns})
        return
    rows = list(zip(*columns.values(), strict=True))
    chosen = np.unique(
        np.linspace(0, len(rows) - 1, min(len(rows), SHOWN_ROWS)).round().astype(int)
    )
    show_table(tuple(columns), [[number(value) for value in rows[i]] for i in chosen])
    steps = "steps of the solver" if simulation.training.dim == "time" else "steps"
    show(f"{ENDINGS[status]}, after {ending['stopped_at']:,} {steps}")


def _columns(simulation: Simulation, run: aj.Trajectory) -> dict[str, list[Any]]:
    """One column a number that was observed, one row a save point."""
    dim = simulation.training.dim
    points = simulation.training.points if run.step is not None else np.asarray(run.time)
    columns = {dim: np.asarray(points).tolist()}
    if run.step is not None and run.time is not None and run.time.ndim == 1:
        columns["time"] = np.asarray(run.time).tolist()
    for name in (one.name for one in simulation.observations):
        table = np.asarray(run.observations[name])
        if table.ndim == 1:
            columns[name] = table.tolist()
        else:
            for i, column in enumerate(table.T, start=1):
                columns[f"{name}[{i}]"] = column.tolist()
    return columns


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", CANNOT_WRITE) from error


def _assignments(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise CommandError(f"--set {text}: expected NAME=VALUE", USAGE)
        found[name.strip()] = value.strip()
    return found


@dataclass(frozen=True)
class SweepOptions:
    """What was asked: see ``alignjax sweep --help``."""

    resume: bool
    overwrite: bool
    dry_run: bool
    store: Path | None
    chunk: int | None
    dtype: str | None
    quiet: bool
    as_json: bool


def sweep_config(path: Path, options: SweepOptions) -> None:
    """Run the grid of a config into its store, or tell what that would take."""
    simulation = read_simulation(Document(path), options.dtype)
    if not simulation.axes:
        raise CommandError(
            f"{path}: needs the table [axes], such as learning_rate = {{geomspace = [1e-3, 1, 50]}}"
        )
    store = options.store or simulation.store
    if store is None:
        raise CommandError(f"{path}: sweep.store: needs a folder for the results, or give --store")
    axes, static = simulation.grid()
    arguments: dict[str, Any] = {
        "static": static or None,
        "dims": simulation.dims(),
        "units": dict(simulation.units) or None,
        "chunk": options.chunk or simulation.chunk,
        "store": store,
        "resume": options.resume,
        "overwrite": options.overwrite,
    }
    try:
        if options.dry_run:
            _show_plan(forecast(simulation.run, axes, **arguments), store, as_json=options.as_json)
            return
        shown = not options.quiet
        results = aj.sweep(simulation.run, axes, **arguments, progress=shown)
    except StoreMismatchError as error:
        raise CommandError(_for_shell(told(error)), CANNOT_WRITE) from error
    except (StoreWriteError, FileExistsError) as error:
        raise CommandError(_for_shell(told(error)), CANNOT_WRITE) from error
    if not options.quiet:
        _show_results(results, store, as_json=options.as_json)


def _for_shell(message: str) -> str:
    """The library's advice in the words of the command line."""
    spoken = {
        "pass overwrite=True": "pass --overwrite",
        "overwrite=True": "--overwrite",
        "pass resume=True": "pass --resume",
        "resume is False": "--no-resume is given",
        "resume=True": "--resume",
    }
    for word, option in spoken.items():
        message = message.replace(word, option)
    return message


def _show_plan(plan: Forecast, store: Path, *, as_json: bool) -> None:
    if as_json:
        show_json({**dataclasses.asdict(plan), "store": str(store)})
        return
    grid = " × ".join(f"{name} {count:,}" for name, count in plan.dims.items())
    done = plan.runs - plan.runs_left
    each = ", ".join(
        name + (f" ({', '.join(f'{d} {n}' for d, n in dims.items())})" if dims else "")
        for name, dims in plan.outputs.items()
    )
    memory = size(plan.bytes_per_device) if plan.bytes_per_device else "not told by the compiler"
    show_pairs(
        {
            "grid": grid,
            "runs": f"{plan.runs:,}" + (f", of which {done:,} are in the store" if done else ""),
            "each run gives": each,
            "programs to compile": f"{plan.programs}, took {duration(plan.compile_seconds)} now",
            "blocks": f"{plan.blocks_left:,} of at most {plan.chunk:,} runs, on {plan.devices} "
            f"device{'s' * (plan.devices > 1)}",
            "memory": f"{memory} a device while computing",
            "results": f"{size(plan.bytes_of_results)}",
            "time": f"about {duration(plan.seconds)} of computing, from timing one block of each "
            f"program",
            "store": str(store),
        }
    )
    show("Nothing was written.")


def _show_results(results: Any, store: Path, *, as_json: bool) -> None:
    status = results["status"]
    counts = {s.name.lower(): int((status == s).sum()) for s in aj.Status}
    if as_json:
        show_json({"store": str(store), "dims": dict(results.sizes), "runs": counts})
        return
    told_counts = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    sizes = ", ".join(f"{name} {count:,}" for name, count in results.sizes.items())
    show_pairs(
        {
            "runs": told_counts,
            "dimensions": sizes,
            "variables": ", ".join(map(str, results.data_vars)),
            "store": str(store),
        }
    )
    show(f"alignjax plot {store} draws it; xarray.open_zarr reads it.")
