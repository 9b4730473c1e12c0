"""What a platform is: one module that says which files an app library for it has.

A module ``edgekd/bundle/<name>.py`` (or a plug-in of the group ``edgekd.platforms``) defines the names below at module
level. It copies libraries from ``runtimes/`` and fills in a small configuration: it holds no code of an app in
strings. It writes nothing itself: ``stage.make`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgekd.artifact import Facts


@dataclass(frozen=True)
class App:
    """A run's artefact, and what a bundle says about it."""

    name: str  # a package id: lower case, digits, hyphens
    task: str
    target: str
    scheme: str
    artifact: Path  # its folder
    export: Facts  # facts of its export step
    labels: tuple[str, ...]
    pad_id: int
    bound: float  # of the golden outputs, as verified
    verdict: Mapping[str, Any]
    measured: Mapping[str, Any]  # its row of the report
    provenance: Mapping[str, Any]  # recipe, teacher, data, tools
    extra: Mapping[str, Any]  # what the task's answers depend on beside the labels (a task's `app_settings`)
    tokenizer: str = ""  # of the platform's TOKENIZERS; "": its first
    student: Path = Path()  # the float student's transformers folder
    artifacts: Mapping[str, Path] = field(default_factory=dict)  # folders of all artefacts of the run, by name
    report: Callable[[], Facts] = dict  # the document of the run's report, for who shows more than one artefact

    @property
    def settings(self) -> dict[str, Any]:
        """``app.json``: all that a library needs to know, on every platform."""
        return {
            "schema": "edgekd/app/1",
            "name": self.name,
            "task": self.task,
            "target": self.target,
            "scheme": self.scheme,
            "file": self.export["file"],
            "inputs": [{"name": one["name"], "dtype": one["dtype"]} for one in self.export["inputs"]],
            "lengths": list(self.export.get("lengths", [])),
            "max_length": self.export["max_length"],
            "pad_id": self.pad_id,
            "labels": list(self.labels),
            "bound": self.bound,
            **self.extra,
        }


class Platform(Protocol):
    """The module contract."""

    TARGETS: frozenset[str]  # whose artefacts it can carry
    TASKS: frozenset[str]  # what its library has an API for
    RUNTIMES: Mapping[str, str]  # by target: the package that the app adds
    # BYTES: Mapping[str, Mapping[str, int]], optional: by target, what the runtime adds for each ABI, as measured
    # BESIDE: tuple[str, ...], optional: folders of the bundle that do not end in an app: tests, samples
    TOKENIZERS: tuple[str, ...]  # "native": the core in runtimes/; "library": the platform's own; the default first
    USAGE: Mapping[str, str]  # by task: Markdown for the bundle's README; {name} stands for the bundle's name

    def place(self, app: App) -> str | None:
        """The folder of ``app.json`` and ``model/`` in the bundle, as the library looks for them; "" for the top.

        None: the platform has a layout of its own, and ``files`` gives all of it.
        """
        ...

    def files(self, app: App) -> Mapping[str, bytes | Path]:
        """Code and configuration by place in the bundle; model, golden inputs and provenance are added by the stage."""
        ...

    def readme(self, app: App) -> str:
        """Optional: the bundle's README.md, in place of the common one."""
        ...
