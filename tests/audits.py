"""What every test of an experiment at quick scale looks at."""

import importlib
from pathlib import Path

from experiments import style
from experiments.context import Context
from experiments.registry import Experiment


def run(experiment: Experiment, folder: Path, scale: str = "quick") -> Context:
    """What an experiment says and where it has written it."""
    context = Context(experiment.name, scale=scale, folder=folder)
    with style.paper():
        experiment(context)
    return context


def audit(name: str, folder: Path) -> Context:
    """Run an experiment at quick scale: no verdict surprises, and everything is written."""
    module = importlib.import_module(f"experiments.{name.replace('/', '.')}")
    context = run(getattr(module, name.rpartition("/")[2]), folder)
    assert not [claim for claim in context.claims if claim.surprising]
    assert context.figures
    for figure in context.figures:
        assert (folder / f"{figure.name}.png").stat().st_size > 10_000
        assert (folder / f"{figure.name}.pdf").exists()
    assert context.tables
    assert all((folder / f"{table.name}.csv").exists() for table in context.tables)
    return context


def refuted(context: Context) -> set[str]:
    """The claims that came out as refuted."""
    return {claim.id for claim in context.claims if claim.verdict == "refuted"}
