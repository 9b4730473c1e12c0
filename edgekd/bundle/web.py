"""Web pages: a package in TypeScript over ONNX Runtime Web and LiteRT.js, with a demo page and a server for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edgekd import registry
from edgekd.bundle import _native, _provenance
from edgekd.bundle._contract import App
from edgekd.errors import BadInput

TARGETS = frozenset({"onnx", "litert"})
TASKS = frozenset({"text-classification", "token-classification", "question-answering", "sentence-similarity"})
RUNTIMES = {"onnx": "onnxruntime-web", "litert": "@litertjs/core"}
BYTES = {  # of the WebAssembly as it travels (gzip -9): onnxruntime-web 1.30.0, @litertjs/core 2.5.3; without WebGPU
    "onnx": {"wasm": 3_659_955},
    "litert": {"wasm": 2_837_761},
}
TOKENIZERS = ("library",)
BESIDE = ("demo",)
FOLDERS = ("src", "demo")
FILES = ("build.mjs", "serve.mjs", "tsconfig.json")


def place(app: App) -> str:
    """The top: the folder's URL is what the library is given. Raises BadInput for a tokenizer that it does not run."""
    _check(app.artifact / "tokenizer.json")
    return ""


def files(app: App) -> Mapping[str, bytes | Path]:
    """The package as it lies in ``runtimes/``, under the bundle's name."""
    here = registry.folder("runtimes") / "web" / "app"
    sources = [path for folder in FOLDERS for path in sorted((here / folder).rglob("*")) if path.is_file()]
    package = json.loads((here / "package.json").read_text(encoding="utf-8"))
    return {
        **{str(path.relative_to(here)): path for path in sources},
        **{name: here / name for name in FILES},
        "package.json": _provenance.text({**package, "name": app.name}),
    }


def _check(file: Path) -> None:
    """The parts are those of the native cores; the model is the library's, which does not fall back to bytes."""
    _native.check(file, "web")
    if json.loads(file.read_text(encoding="utf-8"))["model"].get("byte_fallback"):
        todo = "Use a student with another tokenizer."
        raise BadInput("no web library runs a model with byte_fallback", where=str(file), todo=todo)


def _usage(kind: str, call: str) -> str:
    """Braces that are JavaScript's are doubled: the stage fills in {name}."""
    return (
        "```\nnpm install\nnpm run build          # dist/: the library, its worker, and the runtime's files\n"
        "npm run demo           # a page with the answer and the self-test\n```\n\n"
        f'```ts\nimport {{{{ {kind} }}}} from "{{name}}";\n\n'
        f'const model = await {kind}.load("/{{name}}/"); // the URL of this folder, as your site serves it\n'
        f"await model.{call}\n```"
    )


USAGE = {
    "text-classification": _usage("EdgeClassifier", 'classify("a text", 3); // [{{ label, score }}]'),
    "token-classification": _usage("EdgeTagger", 'tag("a text"); // [{{ label, start, end, text, score }}]'),
    "question-answering": _usage("EdgeAnswerer", 'answer("a question", "a text"); // {{ text, start, end, score }}'),
    "sentence-similarity": _usage("EdgeEmbedder", 'embed("a text"); // number[]'),
}
