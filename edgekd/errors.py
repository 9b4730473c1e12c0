"""Every way edgekd says no.

An error message says what is wrong, where, and what to do, in one line. The exit code is a property of
the kind of error, so the CLI never has to guess. Nothing here imports anything.

    EdgekdError
    ├── BadInput        2   the recipe, the data, the teacher or an argument is wrong
    ├── Environment     3   a package, a runtime or a tool is missing or broken
    │   └── DeviceError 3   a device cannot be reached or failed during a job
    └── StepFailed      1   a step that was asked for did not come out (its log says why)
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_GATE = 1
EXIT_BAD_INPUT = 2
EXIT_ENVIRONMENT = 3
EXIT_INTERRUPTED = 130


class EdgekdError(Exception):
    """Base of all errors that edgekd raises on purpose; shown without a traceback."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(self.line())

    def line(self) -> str:
        """The message on one line: ``where: what. What to do.``"""
        head = f"{self.where}: {self.what}" if self.where else self.what
        text = " ".join(head.split()).rstrip(".") + "."
        return f"{text} {' '.join(self.todo.split())}" if self.todo else text


class BadInput(EdgekdError):
    """The recipe, the data, the teacher or an argument is wrong: exit code 2."""


class Environment(EdgekdError):
    """A package, a runtime or a tool is missing or broken: exit code 3."""

    exit_code = EXIT_ENVIRONMENT


class DeviceError(Environment):
    """A device cannot be reached, or failed during a job: exit code 3."""


class StepFailed(EdgekdError):
    """A step in its own process crashed, hung or was killed: exit code 1."""

    exit_code = EXIT_GATE


def closest(name: str, known: list[str] | tuple[str, ...] | frozenset[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest known name, or the empty string."""
    import difflib

    match = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
