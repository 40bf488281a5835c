"""The command line: ``alignjax certify | simulate | sweep | plot | info`` (extra ``cli``).

The library never depends on it, and it needs libraries that the library does without: they are
imported when :func:`main` runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from alignjax.cli.errors import MISSING_EXTRA

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; what the script ``alignjax`` calls.

    Args:
        arguments: as typed after ``alignjax``; those of this process by default.

    Returns:
        The exit code, as ``alignjax --help`` lists them.
    """
    try:
        from alignjax.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        print(
            f"error: the command line needs {error.name}, which is not installed; "
            f"pip install 'alignjax[cli]' brings all of it",
            file=sys.stderr,
        )
        return MISSING_EXTRA
    return run(arguments)
