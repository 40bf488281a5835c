"""Run experiments one after the other and write down what each of them found."""

from __future__ import annotations

import datetime
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from experiments import files, page, style
from experiments.claims import Claim, describe
from experiments.context import Context, Scale, Tracker, untracked
from experiments.provenance import ROOT, provenance
from experiments.registry import Experiment

COLORS = {"confirmed": "green", "refuted": "red", "not measured": "yellow"}


@dataclass(frozen=True)
class Outcome:
    """What one experiment led to.

    Attributes:
        name: The experiment's name.
        claims: The claims it made before it ended.
        seconds: Wall-clock time.
        error: The traceback where it raised.
    """

    name: str
    claims: tuple[Claim, ...]
    seconds: float
    error: str | None

    @property
    def succeeded(self) -> bool:
        """Whether it ended without an error and every verdict is the expected one."""
        return self.error is None and not any(claim.surprising for claim in self.claims)


def prepare_output(output: Path) -> None:
    """Make the output folder and see that it can be written to.

    Raises:
        OSError: It cannot.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def run_one(
    experiment: Experiment,
    *,
    scale: Scale,
    seed: int,
    output: Path,
    shared: dict[str, Any],
    track: Tracker = untracked,
) -> Outcome:
    """Run one experiment and write its files into ``output/<paper>/<name>/``.

    What it wrote before an error is kept, with the error beside it. The files are made in a hidden
    folder and moved when the experiment ends, so an interrupted run leaves the last results alone.

    Args:
        experiment: What to run.
        scale: The scale of the run.
        seed: The seed of the run.
        output: The folder of all results.
        shared: What :func:`experiments.provenance.provenance` says.
        track: Wraps the experiment's own loops in a progress bar.
    """
    folder = output / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=".running."))
    try:
        context = Context(experiment.name, scale=scale, seed=seed, folder=staging, track=track)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        start = time.perf_counter()
        error = None
        try:
            with style.paper():
                experiment(context)
        except Exception as raised:
            error = _traceback(raised)
        seconds = time.perf_counter() - start
        config = {
            "experiment": experiment.name,
            "scale": scale,
            "seed": seed,
            "date": date,
            "wall_seconds": round(seconds, 3),
            **shared,
        }
        record = {
            "name": experiment.name,
            "title": experiment.title,
            "source": experiment.source,
            "error": error,
            **context.contents(),
        }
        files.write_json(staging / "config.json", config)
        files.write_json(staging / "claims.json", [claim.to_json() for claim in context.claims])
        _publish(staging, folder, record)
    finally:
        shutil.rmtree(staging)
    return Outcome(experiment.name, tuple(context.claims), seconds, error)


def _publish(staging: Path, folder: Path, record: dict[str, Any]) -> None:
    """Move the new files into place, and remove those of the last run that have no successor."""
    written = sorted(entry.name for entry in staging.iterdir())
    index = folder / "experiment.json"
    previous = files.read_json(index)["files"] if index.exists() else []
    for name in written:
        os.replace(staging / name, folder / name)
    files.write_json(index, {**record, "files": written})
    for name in set(previous) - set(written):
        (folder / name).unlink(missing_ok=True)


def _traceback(error: Exception) -> str:
    """The error's traceback from the experiment on, with paths relative to the checkout."""
    summary = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in summary.stack if not _is_machinery(frame.filename)]
    summary.stack = traceback.StackSummary.from_list(frames)
    text = "".join(summary.format())
    for folder in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def _is_machinery(filename: str) -> bool:
    """Whether a frame only led to the experiment: this package's own modules, and importlib."""
    return Path(filename).parent == Path(__file__).parent or "importlib" in filename


def run_experiments(
    experiments: Sequence[Experiment],
    *,
    scale: Scale,
    seed: int,
    output: Path,
    console: Console,
) -> list[Outcome]:
    """Run experiments, rebuild the page after each of them, and print the table of claims.

    An experiment that raises does not keep the others from running.

    Args:
        experiments: What to run, in this order.
        scale: The scale of the run.
        seed: The seed of the run.
        output: The folder of all results.
        console: Where to report; progress bars are shown only where it is a terminal.

    Returns:
        One outcome for each experiment.
    """
    prepare_output(output)
    shared = provenance()
    outcomes = []
    with _progress(console) as progress:
        total = progress.add_task("experiments", total=len(experiments))
        for experiment in experiments:
            progress.update(total, description=experiment.name)
            outcome = run_one(
                experiment,
                scale=scale,
                seed=seed,
                output=output,
                shared=shared,
                track=_tracker(progress),
            )
            page.build(output)
            outcomes.append(outcome)
            progress.console.print(_summary(outcome))
            progress.advance(total)
    report(outcomes, output, console)
    return outcomes


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 where every experiment ended and every verdict is the expected one, else 1."""
    return 0 if all(outcome.succeeded for outcome in outcomes) else 1


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _tracker(progress: Progress) -> Callable[[Iterable[Any], str], Iterator[Any]]:
    def track(items: Iterable[Any], description: str) -> Iterator[Any]:
        task = progress.add_task(f"  {description}")
        try:
            yield from progress.track(items, task_id=task)
        finally:
            progress.remove_task(task)

    return track


def _summary(outcome: Outcome) -> Text:
    """One line on an experiment that has ended."""
    line = Text(f"{outcome.name}  {outcome.seconds:.1f} s  ")
    if outcome.error is not None:
        return line.append(f"failed: {outcome.error.strip().splitlines()[-1]}", style="bold red")
    counts = [
        f"{sum(claim.verdict == verdict for claim in outcome.claims)} {verdict}"
        for verdict in COLORS
        if any(claim.verdict == verdict for claim in outcome.claims)
    ]
    return line.append(", ".join(counts) or "no claims", style="dim")


def report(outcomes: Sequence[Outcome], output: Path, console: Console) -> None:
    """Print the table of claims, what was not expected, and where the page is."""
    claims = [(outcome.name, claim) for outcome in outcomes for claim in outcome.claims]
    if claims:
        console.print(_claims_table([claim for _, claim in claims]))
    for name, claim in claims:
        if claim.surprising:
            console.print(
                Text(
                    f"{name}: claim {claim.id!r} is {claim.verdict}, expected {claim.expected}",
                    style="bold red",
                )
            )
    failed = [outcome.name for outcome in outcomes if outcome.error is not None]
    if failed:
        console.print(Text(f"failed: {', '.join(failed)}", style="bold red"))
    console.print(Text(f"page: {output / page.FILE}"))


def _claims_table(claims: Sequence[Claim]) -> Table:
    table = Table(title="Claims", title_justify="left", title_style="bold", show_lines=True)
    table.add_column("source", ratio=3)
    table.add_column("statement", ratio=6)
    for header in ("predicted", "measured", "tolerance"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        cells = {key: Text(value) for key, value in describe(claim).items()}
        if claim.reason:
            cells["statement"].append(f"\n({claim.reason})", style="dim")
        cells["verdict"].stylize(COLORS[claim.verdict])
        if claim.surprising:
            cells["verdict"].append(f"\nexpected: {claim.expected}", style="bold red")
        table.add_row(*cells.values())
    return table
