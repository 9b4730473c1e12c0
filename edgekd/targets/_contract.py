"""What a target is: one module that turns a Program into a file, and runs that file on its own runtime.

A target legalises (same numbers, other spelling) and never chooses a number. Vendor packages are imported
inside the functions, so that names, suffixes and accepted schemes can be read where nothing is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekd.artifact import Facts, read_json
from edgekd.errors import BadInput
from edgekd.registry import require as require

if TYPE_CHECKING:
    import numpy as np
    import torch


class Session(Protocol):
    """An opened artefact. ``observed`` says what really runs: runtime, version, provider, threads, caveats."""

    observed: Facts

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One example, by input name: ids and masks int64 [1, S], S <= max_length, pixels float32 [1, 3, H, W].

        Gives the Program's logits, float32 [1, C], or [1, S, C] where it has one vector per token. A session of a
        fixed-length artefact pads itself, to the shortest of its lengths that holds the example (mask 0), and cuts the
        output back to S. Where the export's ``inputs`` name the batch axis (``"batch"`` in their shape), several rows
        of one length may be given at once.
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
    accepts: frozenset[str]  # layers (and so schemes) that it carries faithfully, by their names in quantize/scheme.py
    refuses: Mapping[str, str]  # why not, for the others: half a sentence for the user
    slow: bool  # the host evaluates it by a slow reference, so verify takes a stated subset of rows
    benchable: bool  # this host has a runtime worth timing
    fixed_length: bool  # a file takes texts of certain lengths only (``shorter``), not of any

    def export(self, program: Path, out: Path, *, max_length: int, shorter: Sequence[int] = ()) -> Facts:
        """Write ``out/model<suffix>`` from the Program in folder ``program``; see docs/architecture.md for facts.

        ``max_length`` counts tokens; a Program without a sequence (images) has the fact ``max_length`` None.
        ``shorter`` are further lengths of a ``fixed_length`` target, whose fact ``lengths`` lists all, ascending.
        """
        ...

    def golden_bound(self, scheme: str, logit_range: float) -> float:
        """Largest |difference| of a logit from the Program on the golden inputs; argued in the docstring.

        ``logit_range`` = max - min of the golden logits, over all tokens where each has its own. A bound is a share of
        it, so it holds for every task: a token's logits come from the same layers as a class's, and an embedding's
        numbers (a unit vector of D, hence within about 3 / sqrt(D) of zero) shrink with their range.
        """
        ...

    def open_session(self, artifact: Path, *, threads: int = 1) -> Session:
        """Open ``artifact/model<suffix>`` (an artefact folder, finished or partial, with the export's facts)."""
        ...

    def kernels(self, artifact: Path) -> Facts:
        """Optional: how many layers with stored weights the runtime runs in integers, and how many in float.

        ``{"integer": n, "float": n, "how": "optimised graph", "names": {kernel: n}}``, as the runtime itself tells by
        ``how``; ``integer``, ``float`` and ``how`` are None, with a ``why``, where it cannot be told. A layer that
        multiplies integer activations by integer weights counts as integer, one that only stores its weights so not.
        """
        ...


def load_program(program: Path) -> torch.export.ExportedProgram:
    """Read ``program.pt2``, with the quantize/dequantize ops registered."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

    return torch.export.load(program / "program.pt2")


def float_bound(logit_range: float) -> float:
    """Bound of a float artefact: 1e-3 of the range, but never more than 1e-3.

    Sums in another order differ by about 1e-6 relative per layer, so even deep models stay far below it.
    """
    return 1e-3 * min(1.0, logit_range)


def read_signature(program: Path) -> tuple[list[Facts], list[Facts]]:
    """Inputs and outputs of a Program (or of an artefact, which carries the same golden examples)."""
    signature = read_json(program / "golden.json")["signature"]
    return signature["inputs"], signature["outputs"]


def has_sequence(value: Facts) -> bool:
    """Whether one of its axes is the number of tokens."""
    return "sequence" in value["shape"]


def sizes(value: Facts, length: int) -> list[int]:
    """Its shape for batch 1 and ``length`` tokens."""
    fixed = {"batch": 1, "sequence": length}
    return [fixed.get(size, size) for size in value["shape"]]


def example(inputs: Sequence[Facts], length: int) -> tuple[torch.Tensor, ...]:
    """Ones for every input, batch 1: what an exporter traces with."""
    import torch

    return tuple(torch.ones(sizes(one, length), dtype=getattr(torch, one["dtype"])) for one in inputs)


def graphs(default: str, max_length: int, shorter: Sequence[int]) -> dict[str, int]:
    """Lengths by the names of a file's graphs: ``default`` holds every text, the others are ``tokens_<length>``."""
    return {default: max_length} | {f"tokens_{length}": length for length in sorted(shorter)}


def specialise(
    program: torch.export.ExportedProgram, inputs: Sequence[Facts], length: int
) -> torch.export.ExportedProgram:
    """The same Program for batch 1 and one fixed length: what static formats need."""
    import torch

    return torch.export.export(program.module(), example(inputs, length))


def padded(inputs: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], where: str) -> dict[str, np.ndarray]:
    """One example in the shapes of a fixed-length file: tokens padded with zeros (mask 0), images as they are.

    Raises BadInput where it is too long or an image of another size.
    """
    import numpy as np

    made = {}
    for name, shape in shapes.items():
        array = inputs[name]
        if len(shape) == 2:
            size, length = array.shape[1], shape[1]
            if size > length:
                raise BadInput(f"{size} tokens; the artefact takes at most {length}", where=where)
            array = np.pad(array, ((0, 0), (0, length - size)))
        elif array.shape != tuple(shape):
            raise BadInput(f"{name} of shape {array.shape}; the artefact takes {tuple(shape)}", where=where)
        made[name] = array
    return made


def tokens(inputs: Mapping[str, np.ndarray]) -> int:
    """Tokens of an example; 0 where it has no sequence."""
    return max((array.shape[1] for array in inputs.values() if array.ndim == 2), default=0)


def unpadded(logits: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits without the vectors of padded tokens: [1, L, C] -> [1, S, C]; [1, C] as it is."""
    return logits[:, : next(iter(inputs.values())).shape[1]] if logits.ndim == 3 else logits
