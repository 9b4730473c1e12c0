"""Android: a Gradle project of a library, the model among its assets, and a sample app."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd import registry
from edgekd.bundle._contract import App

TARGETS = frozenset({"onnx", "litert", "executorch"})
TASKS = frozenset({"text-classification", "token-classification", "question-answering", "sentence-similarity"})
RUNTIMES = {
    "onnx": "com.microsoft.onnxruntime:onnxruntime-android",
    "litert": "com.google.ai.edge.litert:litert",
    "executorch": "org.pytorch:executorch-android",
}
BYTES = {  # of libexecutorch.so as react-native-executorch 0.8.5 has it; Maven's packages were not at hand
    "executorch": {"arm64-v8a": 12_951_208, "x86_64": 17_326_928}
}
TOKENIZERS = ("native", "library")
BESIDE = ("sample", "gradle", "library/src/androidTest")
ENGINES = {"onnx": "OnnxEngine.kt", "litert": "LiteRtEngine.kt", "executorch": "ExecuTorchEngine.kt"}
ENCODERS = {"native": "NativeEncoder.kt", "library": "LibraryEncoder.kt"}
CODE = "library/src/main/kotlin/dev/edgekd"
PROJECT = (
    "build.gradle.kts",
    "gradle.properties",
    "settings.gradle.kts",
    "gradle",
    "library",
    "sample/build.gradle.kts",
)


def place(app: App) -> str:
    """The assets of the library, by the bundle's name: an app may have several."""
    return f"library/src/main/assets/edgekd/{app.name}"


def files(app: App) -> Mapping[str, bytes | Path]:
    """The project; of engines, tokenizers and demos only the one that the bundle needs."""
    here = registry.folder("runtimes") / "android"
    found: dict[str, bytes | Path] = {}
    for part in (*PROJECT, "sample/src"):
        found |= _below(here / part, part)
    found |= _below(here / "core" / "dev" / "edgekd", CODE)
    for path in (here / "engines" / ENGINES[app.target], here / "encoders" / ENCODERS[app.tokenizer]):
        found[f"{CODE}/{path.name}"] = path
    demo = here / "sample" / "demos" / app.task / "Demo.kt"
    found["sample/src/main/kotlin/dev/edgekd/sample/Demo.kt"] = demo
    # The names of the version catalogue's libraries.
    runtime = [app.target, *(["djl-tokenizers", "djl-native"] if app.tokenizer == "library" else [])]
    found |= _filled(here, "gradle/libs.versions.toml", "@EDGEKD_RUNTIME@", ", ".join(f'"{one}"' for one in runtime))
    found |= _filled(here, "settings.gradle.kts", "@EDGEKD_NAME@", app.name)
    return found


def _below(folder: Path, at: str) -> dict[str, bytes | Path]:
    if folder.is_file():
        return {at: folder}
    return {f"{at}/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*")) if path.is_file()}


def _filled(here: Path, name: str, token: str, value: str) -> dict[str, bytes | Path]:
    return {name: (here / name).read_text(encoding="utf-8").replace(token, value).encode()}


_START = """Open the folder in Android Studio, or build it with Gradle 9.1 or newer and a JDK 17:

```
gradle :sample:installDebug                      # a screen that asks the model
gradle :library:connectedAndroidTest             # the golden texts on the device that is plugged in
gradle :library:assembleRelease                  # library/build/outputs/aar/library-release.aar
```

In an app: copy `library/` beside it, say `include(":library")` and `implementation(project(":library"))`, and in the
app's own build file, for an app decides what its APK compresses:

```kotlin
android {{
    androidResources {{ noCompress += listOf("onnx", "tflite", "pte") }}
}}
```

```kotlin
val model = {kind}.load(context).closeWith(viewModelScope)
{call}
```

The versions of the runtime and the plug-ins stand in `gradle/libs.versions.toml`."""


def _usage(kind: str, call: str) -> str:
    return _START.replace("{kind}", kind).replace("{call}", call)


USAGE = {
    "text-classification": _usage("EdgeClassifier", "val labels = model.inBackground {{ classify(text, topK = 3) }}"),
    "token-classification": _usage("EdgeTagger", "val spans = model.inBackground {{ tag(text) }}"),
    "question-answering": _usage("EdgeAnswerer", "val answer = model.inBackground {{ answer(question, context) }}"),
    "sentence-similarity": _usage("EdgeEmbedder", "val vector = model.inBackground {{ embed(text) }}"),
}
