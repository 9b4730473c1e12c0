"""Linux boards: a Python library without a wheel, two files beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd import registry
from edgekd.bundle._contract import App

TARGETS = frozenset({"onnx", "litert", "executorch", "openvino"})
TASKS = frozenset({"text-classification", "token-classification", "question-answering", "sentence-similarity"})
RUNTIMES = {
    "onnx": "onnxruntime",
    "litert": "ai-edge-litert",
    "executorch": "executorch",
    "openvino": "openvino",
}
TOKENIZERS = ("library",)


def place(app: App) -> str:
    """The top."""
    return ""


def files(app: App) -> Mapping[str, bytes | Path]:
    """``python/``: the library and the engine that opens the model."""
    here = registry.folder("runtimes") / "linux"
    requirements = "".join(f"{one}\n" for one in ("numpy", "tokenizers", RUNTIMES[app.target]))
    return {
        "python/edgekd_app.py": here / "app" / "edgekd_app.py",
        "python/edgekd_runner.py": here / "python" / "edgekd_runner.py",
        "python/requirements.txt": requirements.encode(),
    }


_START = """```
pip install -r python/requirements.txt
PYTHONPATH=python python python/edgekd_app.py .            # the self-test, on this machine
PYTHONPATH=python python python/edgekd_app.py . "a text"   # an answer
```

```python
from edgekd_app import {kind}

model = {kind}.load(".")
model.{call}
```"""
USAGE = {
    "text-classification": _START.format(kind="EdgeClassifier", call='classify("a text", top_k=3)  # [(label, score)]'),
    "token-classification": _START.format(
        kind="EdgeTagger", call='tag("a text")  # [(label, start, end, text, score)]'
    ),
    "question-answering": _START.format(
        kind="EdgeAnswerer", call='answer("a question", "a text")  # (text, start, end, score)'
    ),
    "sentence-similarity": _START.format(kind="EdgeEmbedder", call='embed("a text")  # [float]'),
}
