"""Linux boards: a Python library without a wheel, and a C++ library as sources, both beside the model.

The C++ library reads texts with the core in ``runtimes/linux/text``: it is left out with ``--tokenizer library``, which
takes any tokenizer, and of OpenVINO, which the Python library alone opens.
"""

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
BYTES = {  # of the libraries in the packages: onnxruntime 1.32.0, ai-edge-litert 2.3.0, executorch 1.5.1
    "onnx": {"x86_64": 34_824_680, "aarch64": 27_165_936},
    "litert": {"x86_64": 8_039_424, "aarch64": 5_991_672},
    "executorch": {"x86_64": 14_490_953, "aarch64": 12_077_865},
}
TOKENIZERS = ("native", "library")  # of the C++ library; Python's has always the package tokenizers
ENGINES = frozenset({"onnx", "litert", "executorch"})  # of the C++ library


def place(app: App) -> str:
    """The top."""
    return ""


def files(app: App) -> Mapping[str, bytes | Path]:
    """``python/``: the library and the engine that opens the model; ``cpp/``: the same as a CMake project."""
    here = registry.folder("runtimes") / "linux"
    requirements = "".join(f"{one}\n" for one in ("numpy", "tokenizers", RUNTIMES[app.target]))
    found: dict[str, bytes | Path] = {
        "python/edgekd_app.py": here / "app" / "edgekd_app.py",
        "python/edgekd_runner.py": here / "python" / "edgekd_runner.py",
        "python/requirements.txt": requirements.encode(),
    }
    if app.tokenizer == "native" and app.target in ENGINES:
        found |= {f"cpp/{name}": path for name, path in _cpp(here, app.target).items()}
    return found


def _cpp(here: Path, target: str) -> Mapping[str, Path]:
    """The library's own files, the tokenizer core, and the one engine that the model needs."""
    native = here / "native"
    engine = [native / "engine.cc", native / "engine.hpp", native / "aarch64.cmake", *native.glob(f"{target}*.[ch]*")]
    text = [path for path in (here / "text").glob("*.[ch]*") if path.suffix in (".cc", ".hpp")]
    own = [*(here / "app" / "cpp").iterdir(), here / "packages.py"]
    return {
        **{path.name: path for path in own},
        **{f"native/{path.name}": path for path in engine},
        **{f"text/{path.name}": path for path in text},
    }


_START = """In Python:

```
pip install -r python/requirements.txt
PYTHONPATH=python python python/edgekd_app.py .            # the self-test, on this machine
PYTHONPATH=python python python/edgekd_app.py . "a text"   # an answer
```

```python
from edgekd_app import {kind}

model = {kind}.load(".")
model.{call}
```

In C++17, where there is `cpp/` (with ONNX Runtime, LiteRT and ExecuTorch; not with `--tokenizer library`):

```
python cpp/packages.py                                     # the runtime's libraries and headers into cpp/vendor/
cmake -S cpp -B build && cmake --build build
build/edgekd-app .                                         # the self-test
build/edgekd-app . "a text"                                # an answer
```

```cpp
#include "edgekd_app.hpp"

auto model = edgekd::{kind}::load(".");
model.{cpp}
```

For 64-bit ARM: `python cpp/packages.py --arch aarch64`, and `cmake -S cpp -B build
-DCMAKE_TOOLCHAIN_FILE=native/aarch64.cmake` (g++-aarch64-linux-gnu)."""
USAGE = {
    "text-classification": _START.format(
        kind="EdgeClassifier",
        call='classify("a text", top_k=3)  # [(label, score)]',
        cpp='classify("a text", 3);  // {{label, score}} ..',
    ),
    "token-classification": _START.format(
        kind="EdgeTagger",
        call='tag("a text")  # [(label, start, end, text, score)]',
        cpp='tag("a text");  // {{label, start, end, text, score}} ..',
    ),
    "question-answering": _START.format(
        kind="EdgeAnswerer",
        call='answer("a question", "a text")  # (text, start, end, score)',
        cpp='answer("a question", "a text");  // {{text, start, end, score}}',
    ),
    "sentence-similarity": _START.format(
        kind="EdgeEmbedder",
        call='embed("a text")  # [float]',
        cpp='embed("a text");  // floats',
    ),
}
