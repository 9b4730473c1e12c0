"""iOS and macOS: a Swift package with the model among its resources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edgekd import registry
from edgekd.bundle._contract import App
from edgekd.errors import BadInput

TARGETS = frozenset({"coreml", "executorch"})
TASKS = frozenset({"text-classification", "token-classification", "question-answering", "sentence-similarity"})
RUNTIMES = {"coreml": "CoreML", "executorch": "executorch"}
BYTES = {"coreml": {"arm64": 0}}  # a part of the system
TOKENIZERS = ("native",)
BESIDE = ("Tests", "Sample")

MODULE = "EdgeApp"  # the module's name in runtimes/ios
# Modules of the system with names that a package may have by `module` (a capital and small letters); Swift would take
# ours for theirs, or the other way round.
TAKEN = frozenset(
    "Accelerate Accessibility Accounts Combine Contacts Compression Cinematic Darwin Dispatch Distributed Foundation "
    "Glibc Intents Matter Messages Metal Network Observation Photos Regex Security Social Speech Spatial Swift Symbols "
    "System Testing Translation Vision".split()
)


def module(name: str) -> str:
    """The Swift module of a bundle: my-intents is MyIntents. BadInput where the system has one of that name."""
    found = "".join(part.capitalize() for part in name.split("-"))
    if found in TAKEN or (_sources() / "Sources" / MODULE / f"{found}.swift").is_file():  # a type of our own
        todo = f"Another name: --name {name}-model."
        raise BadInput(f"'{name}' would be the Swift module {found}, a name that is taken", where="--name", todo=todo)
    return found


def place(app: App) -> str:
    """Among the resources of the package's target."""
    return f"Sources/{module(app.name)}/Resources"


def files(app: App) -> Mapping[str, bytes | Path]:
    """The package under the bundle's own module name, so that two bundles fit into one app."""
    here, name = _sources(), module(app.name)
    found: dict[str, bytes | Path] = {"Package.swift": _manifest(app, here / "Package.swift", name)}
    for folder in ("Sources", "Tests", "Sample"):
        for path in sorted((here / folder).rglob("*")):
            if path.is_file():
                inside = str(path.relative_to(here)).replace(MODULE, name)
                found[inside] = _renamed(path, name) if folder != "Sources" else path
    return found


def _sources() -> Path:
    return registry.folder("runtimes") / "ios"


def _renamed(path: Path, name: str) -> bytes:
    return re.sub(rf"\b{MODULE}\b", name, path.read_text(encoding="utf-8")).encode()


def _manifest(app: App, path: Path, name: str) -> bytes:
    """Package.swift with the module's name, the runtime, and the systems that the file needs."""
    ios, macos = re.findall(r"\d+", str(app.export.get("minimum_deployment", ""))) or ("17", "14")
    version = dict(app.provenance.get("tools", {})).get("executorch", "1.0.0").partition("+")[0]
    text = _renamed(path, name).decode()
    for before, after in (
        ('runtime = "coreml"', f'runtime = "{app.target}"'),
        ('.iOS("17.0"), .macOS("14.0")', f'.iOS("{ios}.0"), .macOS("{macos}.0")'),
        ("swiftpm-1.0.0", f"swiftpm-{version}"),
    ):
        text = text.replace(before, after)
    return text.encode()


_START = """Add this folder to the app: in Xcode, *File > Add Package Dependencies > Add Local*, and its library to the
app's target. `swift test` on a Mac runs the self-test there. `Package.swift` says how the module is called.

```swift
let model = try await {kind}.load()
{call}
let report = try await model.selfTest()  // on the user's device: token ids, outputs, milliseconds
```

`Sample/` has a SwiftUI screen."""
_CALLS = {
    "text-classification": ("EdgeClassifier", 'try await model.classify("a text", topK: 3)  // [EdgeLabel]'),
    "token-classification": ("EdgeTagger", 'try await model.tag("a text")  // [EdgeSpan]'),
    "question-answering": ("EdgeAnswerer", 'try await model.answer("a question", context: "a text")  // EdgeAnswer'),
    "sentence-similarity": ("EdgeEmbedder", 'try await model.embed("a text")  // [Float]'),
}
USAGE = {task: _START.format(kind=kind, call=call) for task, (kind, call) in _CALLS.items()}
