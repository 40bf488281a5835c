"""How a command ends: exit codes, and the one error that is told without a traceback."""

from __future__ import annotations

YES, NO, CANNOT_TELL = 0, 1, 2
"""Verdicts of ``certify``. Nothing else ends with 1 or 2."""

USAGE, BAD_INPUT, MISSING_FILE, MISSING_EXTRA = 64, 65, 66, 69
INTERNAL, CANNOT_WRITE, INTERRUPTED = 70, 73, 130

EXIT_CODES = (
    "Exit codes: 0 done (certify: yes), 1 and 2 certify only: no, cannot tell; "
    "64 wrong usage, 65 bad data or config, 66 a file is missing, 69 a library is missing, "
    "70 a fault of alignjax, 73 refused or unable to write, 130 interrupted."
)


class CommandError(Exception):
    """What went wrong, for the person at the terminal, and the exit code that says so."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        """Keep the code beside the message."""
        super().__init__(message)
        self.code = code


def told(error: BaseException) -> str:
    """The message of a library's error, with the notes it carries, on as many lines."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    notes = [str(note) for note in getattr(error, "__notes__", [])]
    # JAX adds a note on how it shortens tracebacks, of which none is shown here.
    notes = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]
    return "\n".join([str(error) or type(error).__name__, *notes])
