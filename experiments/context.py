"""What an experiment receives: scale, seed, key, and a place for figures, tables and claims."""

from __future__ import annotations

import csv
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TypedDict, TypeVar, Unpack

import jax
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from experiments import files, style
from experiments.claims import Claim, Verdict, measured_claim, unmeasured_claim

Scale = Literal["quick", "standard", "full"]
T = TypeVar("T")
Tracker = Callable[[Iterable[Any], str], Iterator[Any]]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def untracked(items: Iterable[Any], description: str) -> Iterator[Any]:
    """Iterate without a progress bar."""
    return iter(items)


@dataclass(frozen=True)
class FigureRecord:
    """A figure on disk: ``<name>.png`` and ``<name>.pdf``; the width is in inches."""

    name: str
    caption: str
    width: float


@dataclass(frozen=True)
class TableRecord:
    """A table on disk: ``<name>.csv``."""

    name: str
    caption: str
    columns: int
    rows: int


class ClaimOptions(TypedDict, total=False):
    """What a measured claim may be given besides its numbers."""

    tolerance: SupportsFloat
    relative: bool
    expected: Verdict


class Context:
    """One run of one experiment.

    Attributes:
        name: The experiment's name.
        scale: ``"quick"``, ``"standard"`` or ``"full"``.
        seed: The run's seed.
        key: A JAX key made from the seed and the name, so that experiments do not share numbers.
        folder: Where the run's files are written.
        figures: Figures written so far.
        tables: Tables written so far.
        claims: Claims made so far.
        notes: What must stand beside every figure and table.
    """

    def __init__(
        self,
        name: str,
        *,
        scale: Scale = "standard",
        seed: int = 0,
        folder: Path,
        track: Tracker = untracked,
    ) -> None:
        """Prepare a run that writes into ``folder``, which must exist."""
        self.name = name
        self.scale = scale
        self.seed = seed
        self.key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        self.folder = folder
        self.figures: list[FigureRecord] = []
        self.tables: list[TableRecord] = []
        self.claims: list[Claim] = []
        self.notes: list[str] = []
        self._track = track

    def pick(self, *, quick: T, standard: T, full: T) -> T:
        """The value that belongs to the scale of this run."""
        return {"quick": quick, "standard": standard, "full": full}[self.scale]

    def track(self, items: Iterable[T], description: str) -> Iterator[T]:
        """Iterate over ``items`` with a progress bar where the output is a terminal."""
        return self._track(items, description)

    def note(self, text: str) -> None:
        """State what every figure and table of this experiment must carry.

        The text is printed below each figure, at the head of each CSV file (as a line that starts
        with ``#``) and beside both on the page.

        Raises:
            RuntimeError: A figure or table is already written and would lack the note.
        """
        if self.figures or self.tables:
            raise RuntimeError(
                "note: state it before the first figure or table, so that all say it"
            )
        self.notes.append(" ".join(text.split()))

    @contextmanager
    def figure(
        self, name: str, caption: str, *, rows: int = 1, columns: int = 1, **size: Any
    ) -> Iterator[tuple[Figure, Any]]:
        """Open a figure, and write it when the block ends.

        Args:
            name: File name without a suffix.
            caption: What is shown, in plain text.
            rows: Rows of panels.
            columns: Columns of panels.
            **size: ``width``, ``height`` and the rest of :func:`experiments.style.subplots`.

        Yields:
            The figure, and its axes or an array of them.
        """
        self._check_name(name, self.figures)
        figure, axes = style.subplots(rows, columns, **size)
        try:
            yield figure, axes
            self.save_figure(figure, name, caption)
        finally:
            style.plt.close(figure)

    def save_figure(self, figure: Figure, name: str, caption: str) -> None:
        """Write a figure as PNG and PDF, with the notes printed below it, and close it.

        Raises:
            ValueError: The name is taken or cannot be a file name.
        """
        self._check_name(name, self.figures)
        if self.notes:
            style.add_note(figure, " ".join(self.notes))
        for suffix in ("png", "pdf"):
            # without dates and versions inside, equal figures are equal files
            metadata = {"CreationDate": None} if suffix == "pdf" else {"Software": None}
            save = partial(figure.savefig, format=suffix, dpi=style.DPI, metadata=metadata)
            files.write_atomically(self.folder / f"{name}.{suffix}", save)
        self.figures.append(FigureRecord(name, caption, float(figure.get_figwidth())))
        style.plt.close(figure)

    def table(self, name: str, columns: Mapping[str, ArrayLike], caption: str) -> None:
        """Write a table as CSV; floats are written with all their digits.

        Args:
            name: File name without a suffix.
            columns: Header (with its unit where it has one) -> values, all of one length.
            caption: What the table holds, in plain text.

        Raises:
            ValueError: There is no column, one is not one-dimensional, lengths differ, or the name
                is taken or cannot be a file name.
        """
        self._check_name(name, self.tables)
        values = {header: np.asarray(column) for header, column in columns.items()}
        if not values:
            raise ValueError(f"table {name!r}: columns is empty")
        rows = next(iter(values.values())).size
        for header, column in values.items():
            if column.shape != (rows,):
                raise ValueError(
                    f"table {name!r}: column {header!r} must have shape ({rows},), "
                    f"got {column.shape}"
                )
        text = io.StringIO()
        text.writelines(f"# {note}\n" for note in self.notes)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(values)
        writer.writerows(zip(*(column.tolist() for column in values.values()), strict=True))
        files.write_text(self.folder / f"{name}.csv", text.getvalue())
        self.tables.append(TableRecord(name, caption, len(values), rows))

    def claim_close(
        self,
        id: str,
        source: str,
        statement: str,
        *,
        predicted: SupportsFloat,
        measured: SupportsFloat,
        **options: Unpack[ClaimOptions],
    ) -> Claim:
        """Claim |measured − predicted| ≤ tolerance; see :func:`experiments.claims.measured_claim`.

        Args:
            id: Short name, unique within the experiment.
            source: Paper and number, and "corrected" where the statement is not the printed one.
            statement: The statement that the verdict is about.
            predicted: The value that the statement gives.
            measured: The value found.
            **options: ``tolerance`` (0 unless told), ``relative`` (whether it is in units of
                the prediction's size) and ``expected`` (the verdict without which the run fails).
        """
        return self._add(
            measured_claim(
                id,
                source,
                statement,
                comparison="close",
                predicted=predicted,
                measured=measured,
                **options,
            )
        )

    def claim_below(
        self,
        id: str,
        source: str,
        statement: str,
        *,
        bound: SupportsFloat,
        measured: SupportsFloat,
        **options: Unpack[ClaimOptions],
    ) -> Claim:
        """Claim measured ≤ bound + tolerance; arguments as in :meth:`claim_close`."""
        return self._add(
            measured_claim(
                id,
                source,
                statement,
                comparison="below",
                predicted=bound,
                measured=measured,
                **options,
            )
        )

    def claim_above(
        self,
        id: str,
        source: str,
        statement: str,
        *,
        bound: SupportsFloat,
        measured: SupportsFloat,
        **options: Unpack[ClaimOptions],
    ) -> Claim:
        """Claim measured ≥ bound − tolerance; arguments as in :meth:`claim_close`."""
        return self._add(
            measured_claim(
                id,
                source,
                statement,
                comparison="above",
                predicted=bound,
                measured=measured,
                **options,
            )
        )

    def not_measured(
        self,
        id: str,
        source: str,
        statement: str,
        *,
        reason: str,
        expected: Verdict = "not measured",
    ) -> Claim:
        """List a claim that this run does not measure, with the reason."""
        return self._add(unmeasured_claim(id, source, statement, reason=reason, expected=expected))

    def contents(self) -> dict[str, Any]:
        """What has been written so far, for JSON."""
        return {
            "notes": self.notes,
            "figures": [asdict(figure) for figure in self.figures],
            "tables": [asdict(table) for table in self.tables],
        }

    def _add(self, claim: Claim) -> Claim:
        if any(other.id == claim.id for other in self.claims):
            raise ValueError(f"claim {claim.id!r} is made twice in {self.name}")
        self.claims.append(claim)
        return claim

    def _check_name(self, name: str, taken: Sequence[FigureRecord | TableRecord]) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a file name; use letters, digits, '_', '-', '.'")
        if any(record.name == name for record in taken):
            raise ValueError(f"{self.name} already has a figure or table called {name!r}")
