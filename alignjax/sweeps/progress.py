"""A progress bar over the runs of a sweep, on the host."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(total: int, done: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that counts finished runs, with a bar, rate and remaining time on a terminal.

    Nothing is drawn where standard error is no terminal, or where rich is not installed.

    Args:
        total: how many runs this process has.
        done: how many were finished before.
        shown: whether to draw at all.
    """
    bar = _bar() if shown and sys.stderr.isatty() else None
    if bar is None:
        yield lambda runs: None
        return
    with bar:
        task = bar.add_task("runs", total=total, completed=done)
        yield lambda runs: bar.advance(task, runs)


def _bar():  # type: ignore[no-untyped-def]  # rich is imported only when a bar is drawn
    try:
        from rich import console, progress
    except ImportError:
        return None

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> str:
            return "" if task.speed is None else f"{task.speed:,.0f} runs/s"

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        Rate(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
    )
