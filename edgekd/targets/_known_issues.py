"""What converters and runtimes say when they fail, and what to do about it: a table of messages. Light: no imports.

An entry is a regular expression, the target that says it (None: any), and the advice. Only messages that were seen, or
that stand in the packages' sources or trackers, belong here. The first entry that fits wins.
"""

from __future__ import annotations

import re

KNOWN: tuple[tuple[str, str | None, str], ...] = (
    (
        r"MemoryError|bad_alloc|Cannot allocate memory|killed by signal 9",
        None,
        "It ran out of memory: set export.jobs: 1, raise export.memory_gb, or make the student smaller.",
    ),
    (r"No space left on device", None, "The disk is full: free some space; the same command goes on."),
    (
        r"data-dependent|GuardOnDataDependentSymNode",
        None,
        "The model branches on values of its inputs, which torch.export cannot trace: choose another architecture.",
    ),
    (
        r"only 0-dimensional arrays can be converted to Python scalars",
        "coreml",
        "coremltools 9.0 needs numpy below 2.4: pip install 'numpy<2.4'.",
    ),
    (
        r"[Cc]onvert function for op '([^']+)' not implemented|Unsupported fx node",
        "coreml",
        "coremltools has no conversion for an operator of this model: choose another architecture, or drop the target.",
    ),
    (
        r"BlobWriter not loaded",
        "coreml",
        "coremltools was installed without its native library: use its wheel for this Python.",
    ),
    (
        r"failed to legalize operation",
        "litert",
        "The converter has no TFLite operator for part of this model: choose another architecture, or drop the target.",
    ),
    (
        r"Missing out variants",
        "executorch",
        "An operator is neither taken by XNNPACK nor among the portable kernels: choose another architecture.",
    ),
    (
        r"No ONNX function found|UnsupportedOperatorError|torch\.onnx\.errors\.",
        "onnx",
        "The exporter has no translation for an operator of this model: a newer torch or onnxscript may have.",
    ),
    (
        r"libcudart|libcublas|undefined symbol",
        None,
        "A package does not fit the installed torch: install the versions of constraints.txt together.",
    ),
)


def advice(target: str | None, message: str) -> str | None:
    """What to do about a message of this target's converter or runtime; None where it is not known."""
    for pattern, of, todo in KNOWN:
        if (of is None or of == target) and re.search(pattern, message):
            return todo
    return None
