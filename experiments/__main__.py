"""The command line: ``python -m experiments list`` and ``python -m experiments run``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import jax
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.registry import Experiment, UnknownExperimentError, discover, select
from experiments.run import exit_code, prepare_output, run_experiments

USAGE_ERROR = 2
# a file or a pipe has no width of its own, and the table of claims needs room
PLAIN_WIDTH = 150


class ScaleOption(StrEnum):
    """How large the experiments are."""

    quick = "quick"
    standard = "standard"
    full = "full"


def make_app(load: Callable[[], Mapping[str, Experiment]] = discover) -> typer.Typer:
    """The command line over the experiments that ``load`` finds."""
    app = typer.Typer(
        help="Reproduce the figures and audit the statements of the papers.",
        no_args_is_help=True,
        add_completion=False,
    )

    @app.command("list")
    def list_experiments() -> None:
        """Show every experiment with its title and source."""
        table = Table("name", "title", "source")
        for experiment in load().values():
            table.add_row(*map(Text, (experiment.name, experiment.title, experiment.source)))
        _console().print(table)

    @app.command()
    def run(
        names: Annotated[
            list[str] | None,
            typer.Argument(help="Experiments, or a paper's folder, or 'all'.", metavar="NAME"),
        ] = None,
        everything: Annotated[bool, typer.Option("--all", help="Run every experiment.")] = False,
        scale: Annotated[
            ScaleOption, typer.Option(help="How large the experiments are.")
        ] = ScaleOption.standard,
        seed: Annotated[int, typer.Option(min=0, help="Seed of every random number.")] = 0,
        output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
    ) -> None:
        """Run experiments; write figures, tables, claims and one page that shows them."""
        # before an experiment's module can make an array; the library itself never does this
        jax.config.update("jax_enable_x64", True)
        experiments = load()
        everything = everything or "all" in (names or [])
        names = [name for name in names or [] if name != "all"]
        if everything == bool(names):
            _stop("name the experiments to run, or pass --all (see 'list')")
        try:
            chosen = list(experiments.values()) if everything else select(experiments, names)
        except UnknownExperimentError as error:
            _stop(str(error))
        if not chosen:
            _stop("there are no experiments to run")
        try:
            prepare_output(output)
        except OSError as error:
            _stop(f"cannot write to the output folder {output}: {error.strerror or error}")
        outcomes = run_experiments(
            chosen, scale=scale.value, seed=seed, output=output, console=_console()
        )
        raise typer.Exit(exit_code(outcomes))

    return app


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def _stop(message: str) -> NoReturn:
    Console(stderr=True, highlight=False).print(Text(f"error: {message}"), soft_wrap=True)
    raise typer.Exit(USAGE_ERROR)


if __name__ == "__main__":
    make_app()(prog_name="python -m experiments")
