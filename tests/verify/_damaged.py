"""A Core ML artefact whose weights are damaged on purpose."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgekd import artifact
from edgekd.generators import coreml
from edgekd.targets import _mil

WEIGHTS = f"{coreml.FILE}/{_mil.WEIGHTS}/weight.bin"


def broken(inputs: artifact.Inputs, folder: Path, change: Callable[[bytearray], None]) -> artifact.Inputs:
    """The same inputs of a verify step, the package's weight file changed."""
    export = artifact.partial_of(folder / "export")
    shutil.copytree(inputs["export"].path, export)
    content = bytearray((export / WEIGHTS).read_bytes())
    change(content)
    (export / WEIGHTS).write_bytes(content)
    facts = dict(inputs["export"].facts)
    made = artifact.seal(folder / "export", stage="export", label="", key="", facts=facts, parents={}, tools={})
    return artifact.Inputs(parents={**inputs.parents, "export": made}, variant=inputs.variant)
