"""Which experiments there are: the decorator that makes one, and how they are found."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from experiments.context import Context

PAPERS = ("alignment", "max_margin", "sequential")


@dataclass(frozen=True)
class Experiment:
    """One figure, table or audit of a paper.

    Attributes:
        name: ``"<paper>/<file>"``, the place of its file and of its results.
        title: One line on what is shown.
        source: Paper and number of the figure or statement.
        function: What runs it.
    """

    name: str
    title: str
    source: str
    function: Callable[[Context], None]

    def __call__(self, context: Context) -> None:
        """Run the experiment in ``context``."""
        self.function(context)


class UnknownExperimentError(LookupError):
    """A name that no experiment has."""


def experiment(
    name: str, *, title: str, source: str
) -> Callable[[Callable[[Context], None]], Experiment]:
    """Make a function of a :class:`Context` into an :class:`Experiment`.

    Args:
        name: ``"<paper>/<file>"``, for example ``"alignment/figure_1a"``.
        title: One line on what is shown.
        source: Paper and number, for example ``"Radhakrishnan et al. 2020, Figure 1a"``.

    Raises:
        ValueError: The name is not of the form ``"<paper>/<file>"``.
    """
    parts = name.split("/")
    if len(parts) != 2 or not all(part.isidentifier() for part in parts):
        raise ValueError(f"name: expected '<paper>/<file>', got {name!r}")
    return lambda function: Experiment(name, title, source, function)


def discover(package: str = "experiments", papers: Iterable[str] = PAPERS) -> dict[str, Experiment]:
    """Import every module below the papers' folders and collect their experiments.

    Modules whose name starts with an underscore hold what experiments share and are passed over.
    A module that cannot be imported becomes an experiment that raises its error when it is run, so
    that one broken file does not hide the others.

    Args:
        package: Name of the package that holds the papers' folders.
        papers: The folders to look in; one that is missing holds no experiments.
    """
    found: dict[str, Experiment] = {}
    for paper in papers:
        folder = f"{package}.{paper}"
        if importlib.util.find_spec(folder) is None:
            continue
        paths = importlib.import_module(folder).__path__
        for module in sorted(pkgutil.iter_modules(paths), key=lambda entry: entry.name):
            if not module.name.startswith("_"):
                name = f"{paper}/{module.name}"
                found[name] = _load(f"{folder}.{module.name}", name)
    return found


def _load(module_name: str, name: str) -> Experiment:
    """The experiment in a module, or one that raises what importing the module raised."""
    try:
        return _only_experiment(importlib.import_module(module_name), name)
    except Exception as error:
        return Experiment(name, f"{name} could not be loaded", "", _raiser(error))


def _only_experiment(module: ModuleType, name: str) -> Experiment:
    own = [
        value
        for value in vars(module).values()
        # an experiment imported from a neighbour belongs to the neighbour
        if isinstance(value, Experiment) and value.function.__module__ == module.__name__
    ]
    if [entry.name for entry in own] != [name]:
        names = [entry.name for entry in own]
        raise ValueError(f"{module.__name__} must define one experiment, {name!r}; it has {names}")
    return own[0]


def _raiser(error: Exception) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        raise error

    return run


def select(experiments: Mapping[str, Experiment], names: Iterable[str]) -> list[Experiment]:
    """The experiments called ``names``; a paper's name stands for all of its experiments.

    Raises:
        UnknownExperimentError: No experiment has one of the names; close matches are listed.
    """
    chosen: dict[str, Experiment] = {}
    for name in names:
        matching = {
            key: value
            for key, value in experiments.items()
            if key == name or key.startswith(f"{name}/")
        }
        if not matching:
            raise UnknownExperimentError(_unknown(name, experiments))
        chosen |= matching
    return list(chosen.values())


def _unknown(name: str, experiments: Mapping[str, Experiment]) -> str:
    # "figure_1" alone should find "alignment/figure_1a" as well
    close = difflib.get_close_matches(name, experiments, n=3, cutoff=0.5)
    tail = name.rsplit("/", 1)[-1]
    close += [key for key in experiments if tail and tail in key and key not in close]
    hint = f"did you mean {', '.join(close)}?" if close else "'list' shows what there is."
    return f"no experiment is called {name!r}; {hint}"
