"""What a target is: one module that turns a Program into a file, and runs that file on its own runtime.

A target legalises (same numbers, other spelling) and never chooses a number. Vendor packages are imported
inside the functions, so that names, suffixes and accepted schemes can be read where nothing is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.artifact import Facts
from edgekd.errors import Environment

if TYPE_CHECKING:
    import numpy as np
    import torch


class Session(Protocol):
    """An opened artefact. ``observed`` says what really runs: runtime, version, provider, threads, caveats."""

    observed: Facts

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """``input_ids`` and ``attention_mask``, int64 [1, S], S <= max_length -> logits, float32 [1, C].

        A session of a fixed-length artefact pads to that length itself (mask 0).
        """
        ...

    def close(self) -> None:
        """Free the runtime's memory."""
        ...


class Target(Protocol):
    """The module contract of ``edgekd/targets/<name>.py``."""

    suffix: str  # ".onnx"
    extra: str  # pip install 'edgekd[<extra>]'
    distributions: tuple[str, ...]  # PyPI names of exporter and runtime; their versions enter key and manifest
    accepts: frozenset[str]  # schemes it carries faithfully
    slow: bool  # the host evaluates it by a slow reference, so verify takes a stated subset of rows
    benchable: bool  # this host has a runtime worth timing

    def export(self, program: Path, out: Path, *, max_length: int) -> Facts:
        """Write ``out/model<suffix>`` from the Program in folder ``program``; see docs/architecture.md for facts."""
        ...

    def golden_bound(self, scheme: str, logit_range: float) -> float:
        """Largest |difference| of a logit from the Program on the golden inputs; argued in the docstring."""
        ...

    def open_session(self, artifact: Path, *, threads: int = 1) -> Session:
        """Open ``artifact/model<suffix>`` (an artefact folder, finished or partial, with the export's facts)."""
        ...


def load_program(program: Path) -> torch.export.ExportedProgram:
    """Read ``program.pt2``, with the quantize/dequantize ops registered."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

    return torch.export.load(program / "program.pt2")


def specialise(program: torch.export.ExportedProgram, length: int) -> torch.export.ExportedProgram:
    """The same Program for batch 1 and one fixed length: what static formats need."""
    import torch

    example = (torch.zeros(1, length, dtype=torch.int64), torch.ones(1, length, dtype=torch.int64))
    return torch.export.export(program.module(), example)


def require(module: str, extra: str) -> Any:
    """Import a vendor package, or say in one line how to install it. A broken package tells its own error."""
    import importlib
    import importlib.util

    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise Environment(f"package '{module}' is not installed", todo=f"pip install 'edgekd[{extra}]'")
    return importlib.import_module(module)
