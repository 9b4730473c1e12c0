"""An Android bundle's library on a JVM: it answers as the run did, and is built as an .aar that an app takes.

ONNX Runtime's Java API runs for real, in the version that a wheel of PyPI has for desktops (1.17: it reads IR 9, so
the model's ``ir_version`` is lowered in a copy). ExecuTorch's classes are compiled against; of LiteRT and of
``android.content`` stand-ins run. Nothing here starts Android.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _android import ANDROID, android_tools, asked, build_aar, compiled, core, java, tool, utf16
from _material import ROOT, ask_bundle
from test_ship_tasks import ANSWERS, MAKERS, ship

from edgekd import outcome, pipeline, recipe
from edgekd.bundle import stage
from edgekd.bundle._contract import App

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STUBS = ROOT / "tests" / "runtimes" / "android_stubs"
TEXTS = ["", " ", "\U0001f600 a grape for two", "na\u00efve " * 100, "please tell me of \u4e2d\u6587 and the rhine"]
ENCODERS = {"native": "NativeEncoder", "library": "LibraryEncoder"}


@pytest.fixture(scope="module")
def runtimes() -> Path:
    return tool(android_tools.runtimes_jar)


@pytest.fixture(params=sorted(ENCODERS))
def tokenizer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def answer(tokenizer: str, runtimes: Path) -> list[str]:
    """The program ``Answer`` with one of the tokenizers, compiled here."""
    sources = [*core("OnnxEngine", ENCODERS[tokenizer]), ANDROID / "jvm"]
    return java([compiled(sources, [runtimes]), runtimes], "dev.edgekd.AnswerMain")


def assets_of(bundle: Path) -> Path:
    """Its assets, as ONNX Runtime 1.17 reads them."""
    import onnx

    [assets] = (bundle / "library/src/main/assets/edgekd").iterdir()
    file = assets / "model" / "model.onnx"
    model = onnx.load(file)
    model.ir_version = min(model.ir_version, 9)
    onnx.save(model, file)
    return assets


def in_characters(task: str, text: str, found: Any) -> Any:
    """Kotlin's places in a text as Python counts."""
    if task == "question-answering":
        places = utf16(text.partition("\n")[2])
        return [found[0], places.index(found[1]), places.index(found[2]), found[3]]
    if task == "token-classification":
        places = utf16(text)
        return [[one[0], places.index(one[1]), places.index(one[2]), *one[3:]] for one in found]
    return found


def asker(command: list[str], assets: Path, task: str) -> Callable[..., list[Any]]:
    """As ``ask_bundle``: the self-test's report, or the answers to texts."""

    def ask(*texts: str) -> list[Any]:
        lines = [text.split("\n", 1) if task == "question-answering" else text for text in texts]
        report, *found = asked([*command, str(assets)], lines)
        if not texts:
            return [report]
        return [in_characters(task, text, one) for text, one in zip(texts, found, strict=True)]

    return ask


def same(one: Any, other: Any) -> bool:
    """Equal, numbers nearly."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return abs(one - other) < 1e-4
    return bool(one == other)


def check(app: App, command: list[str], tokenizer: str, folder: Path, texts: list[str]) -> dict[str, Any]:
    """The self-test passes, and each text is answered as the Python library answers it; returns the report."""
    stage.make(dataclasses.replace(app, tokenizer=tokenizer), "android", folder / "android", allow_unverified=True)
    stage.make(dataclasses.replace(app, tokenizer=""), "linux", folder / "linux", allow_unverified=True)
    ask = asker(command, assets_of(folder / "android"), app.task)
    [report] = ask()
    assert report["passed"] and report["texts"] > 0, report["wrong"]
    assert all(row["ids_equal"] for row in report["rows"])
    for text, mine, other in zip(texts, ask(*texts), ask_bundle(folder / "linux", *texts), strict=True):
        assert same(mine, other), (text, mine, other)
    return dict(report)


@pytest.fixture(scope="module")
def shipped(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], pipeline.Result]:
    """A tiny run of each task, once."""
    made: dict[str, pipeline.Result] = {}

    def result(task: str) -> pipeline.Result:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            if task in MAKERS:
                made[task] = ship(task, tiny, folder, "[onnx]")
            else:
                made[task] = pipeline.run(recipe.parse(tiny.recipe), folder)
        return made[task]

    return result


TASKS = ("text-classification", "token-classification", "question-answering", "sentence-similarity")


@pytest.mark.parametrize("task", TASKS)
def test_a_tiny_run_answers_as_it_did(
    task: str, shipped: Any, answer: list[str], tokenizer: str, tmp_path: Path
) -> None:
    result = shipped(task)
    app = outcome.app(result, "tiny", "onnx-w8a8")
    texts = [f"which one\n{text}" for text in TEXTS] if task == "question-answering" else TEXTS
    check(app, answer, tokenizer, tmp_path, texts)
    if task in ANSWERS:
        ANSWERS[task](result, app, asker(answer, tmp_path / "android/library/src/main/assets/edgekd/tiny", task))


def artefacts() -> list[Path]:
    """Folders of artefacts for ONNX, of real runs: ``EDGEKD_ARTIFACTS``, with colons between them."""
    return [Path(one) for one in os.environ.get("EDGEKD_ARTIFACTS", "").split(":") if one]


@pytest.mark.parametrize(
    "folder", artefacts() or [None], ids=lambda one: one and f"{one.parent.parent.name}-{one.name}"
)
def test_a_real_run_answers_as_it_did(folder: Path | None, answer: list[str], tokenizer: str, tmp_path: Path) -> None:
    """Golden ids and logits, and the answers of Python's library to the texts of its data."""
    if folder is None:
        pytest.skip("EDGEKD_ARTIFACTS names no artefacts of real runs")
    from edgekd.targets import onnx as target

    manifest = json.loads((folder / "manifest.json").read_text())
    labels = json.loads((folder / "labels.json").read_text())
    golden = json.loads((folder / "golden.json").read_text())
    logits = golden["outputs"]["logits"]
    tags = isinstance(logits[0][0], list)
    flat = [one for row in logits for vector in (row if tags else [row]) for one in vector]
    scheme = folder.name.partition("-")[2]
    app = App(
        name="real",
        task="token-classification" if tags else "text-classification",
        target="onnx",
        scheme=scheme,
        artifact=folder,
        export=manifest["facts"],
        labels=tuple(labels),
        pad_id=0,
        bound=target.golden_bound(scheme, max(flat) - min(flat)),
        verdict={"verdict": "none", "reasons": []},
        measured={},
        provenance={"edgekd": "0", "teacher": "t", "license": None, "tools": {}},
        extra={},
    )
    texts = [*TEXTS, *golden["texts"], *data_texts("restaurant8k" if tags else "banking77")]
    report = check(app, answer, tokenizer, tmp_path, texts)
    print(f"{folder}: {len(texts)} texts, golden {report['largest_difference']:.3g} of {report['bound']:.3g}")  # noqa: T201


def data_texts(name: str) -> list[str]:
    """Some texts of a data set, where it is here."""
    import csv

    from _material import SHARED

    folder = SHARED / "data" / name
    if (folder / "test.jsonl").is_file():
        lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines[::12]]
    if not (folder / "test.csv").is_file():
        return []
    with (folder / "test.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)][::10]


# --- the other runtimes ---


def test_litert_is_called_as_it_wants(tmp_path: Path) -> None:
    """Over a stand-in: inputs by the order of names, signatures by length, int8 back to floats, padding cut off."""
    classes = javac([STUBS / "org"], tmp_path / "classes", [])
    kotlin = compiled([*core("LiteRtEngine", "NativeEncoder"), ANDROID / "jvm"], [classes])
    command = java([kotlin, classes], "dev.edgekd.AnswerMain")
    assets = tmp_path / "assets"
    (assets / "model").mkdir(parents=True)
    from test_cpp_tokenizer import wordpiece

    wordpiece().save(str(assets / "model" / "tokenizer.json"))
    ids = wordpiece().encode("the quick fox").ids
    outputs = [[float(one), 1.0] for one in ids]
    golden = {
        "texts": ["the quick fox"],
        "inputs": {"input_ids": [ids], "attention_mask": [[1] * len(ids)]},
        "outputs": {"logits": [outputs]},
    }
    settings = {
        "schema": "edgekd/app/1",
        "name": "x",
        "task": "sentence-similarity",
        "target": "litert",
        "scheme": "fp32",
        "file": "model.tflite",
        "inputs": [{"name": name, "dtype": "int32"} for name in ("input_ids", "attention_mask")],
        "pad_id": 0,
        "labels": [],
        "bound": 1.0,  # the grid of the stand-in's int8 output is 2
    }
    (assets / "model" / "golden.json").write_text(json.dumps(golden))
    for said, lengths in (("one FLOAT32", [8]), ("two FLOAT32", [8, 16]), ("two INT8", [8, 16])):
        # The stand-in's int8 holds small ids only.
        (assets / "model" / "model.tflite").write_text(said)
        (assets / "app.json").write_text(json.dumps({**settings, "lengths": lengths, "max_length": lengths[-1]}))
        report, vector, longer = asked([*command, str(assets)], ["the quick fox", "the quick fox " * 3])
        assert report["passed"] and report["runtime"] == "litert stub", (said, report)
        assert vector == pytest.approx([one for row in outputs for one in row], abs=1), said
        assert len(longer) == 2 * (8 if lengths == [8] else 11)
    (assets / "model" / "model.tflite").write_text("x")
    done = subprocess.run([*command, str(assets)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "LiteRT cannot open the model: this is no model" in done.stderr


def test_executorch_compiles() -> None:
    assert compiled(core("ExecuTorchEngine", "NativeEncoder"), [tool(android_tools.executorch_jar)]).is_file()


def javac(sources: list[Path], out: Path, classes: list[Path]) -> Path:
    if shutil.which("javac") is None:
        pytest.skip("no javac: apt-get install default-jdk-headless")
    out.mkdir(parents=True)
    files = [str(path) for source in sources for path in sorted(source.rglob("*.java"))]
    path = ["-classpath", os.pathsep.join(map(str, classes))] if classes else []
    done = subprocess.run(
        ["javac", "--release", "11", *path, "-d", str(out), *files], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return out


# --- the .aar ---


def test_the_aar_is_taken_by_an_app(shipped: Any, runtimes: Path, tmp_path: Path) -> None:
    """Built twice with the same bytes, linked into the sample with its model mapped, and run on stand-ins."""
    tool(android_tools.android_jar)
    tool(android_tools.kotlin)
    app = outcome.app(shipped("text-classification"), "tiny", "onnx-w8a8")
    bundle = tmp_path / "bundle"
    stage.make(app, "android", bundle)
    expected = ask_bundle_python(app, tmp_path, TEXTS[:3])
    assets_of(bundle)
    for name in ("one.aar", "two.aar"):
        build_aar.build(bundle, tmp_path / name, [runtimes])
    content = (tmp_path / "one.aar").read_bytes()
    assert content == (tmp_path / "two.aar").read_bytes()
    aar = tmp_path / "aar"
    with zipfile.ZipFile(tmp_path / "one.aar") as packed:
        packed.extractall(aar)
        stored = {one.filename: one.compress_type for one in packed.infolist()}
    assert stored["assets/edgekd/tiny/model/model.onnx"] == zipfile.ZIP_STORED
    assert {"AndroidManifest.xml", "R.txt", "classes.jar", "proguard.txt"} < set(stored)
    runs_on_stand_ins(aar, runtimes, tmp_path, expected)
    links_into_the_sample(bundle, aar, runtimes, tmp_path)


def ask_bundle_python(app: App, folder: Path, texts: list[str]) -> list[Any]:
    stage.make(app, "linux", folder / "linux")
    return ask_bundle(folder / "linux", *texts)


def runs_on_stand_ins(aar: Path, runtimes: Path, folder: Path, expected: list[Any]) -> None:
    """The classes in the .aar, on a JVM: assets, coroutines, closing."""
    content = javac([STUBS / "android"], folder / "content", [])
    main = compiled([STUBS / "Main.kt"], [aar / "classes.jar", content])
    command = java([main, aar / "classes.jar", content, runtimes], "MainKt")
    for compressed in ("no", "yes"):
        found = asked([*command, str(aar / "assets"), str(folder / "files"), compressed], TEXTS[:3])
        assert [one["label"] for one in found[:3]] == [one[0][0] for one in expected]
        assert found[3:] == [
            {"closed": "assets/edgekd/tiny: the model was closed"},
            {"copied": (aar / "assets/edgekd/tiny/model/model.onnx").stat().st_size},
            {"unknown": "the app has no bundle"},
        ]


def links_into_the_sample(bundle: Path, aar: Path, runtimes: Path, folder: Path) -> None:
    framework = Path("/usr/share/android-framework-res/framework-res.apk")
    if shutil.which("aapt2") is None or not framework.is_file():
        pytest.skip("no aapt2 and framework: apt-get install aapt android-framework-res (the .aar itself was tested)")
    sample = bundle / "sample/src/main"
    manifest = folder / "AndroidManifest.xml"  # as Gradle merges it
    manifest.write_text(
        (sample / "AndroidManifest.xml")
        .read_text(encoding="utf-8")
        .replace("<manifest ", '<manifest package="dev.edgekd.sample" ', 1)
        .replace("<application", '<uses-sdk android:minSdkVersion="24" android:targetSdkVersion="29" /><application', 1)
    )
    run(["aapt2", "compile", "--dir", str(sample / "res"), "-o", str(folder / "res.zip")])
    apk, generated = folder / "app.apk", folder / "generated"
    command = ["aapt2", "link", "-I", str(framework), "--manifest", str(manifest), "-A", str(aar / "assets")]
    command += ["-0", ".onnx", "--auto-add-overlay", "--java", str(generated), "-o", str(apk), str(folder / "res.zip")]
    run(command)
    with zipfile.ZipFile(apk) as packed:
        kept = {one.filename: one for one in packed.infolist()}
        model = kept["assets/edgekd/tiny/model/model.onnx"]
        assert model.compress_type == zipfile.ZIP_STORED
        assert packed.read(model.filename) == (aar / model.filename).read_bytes()
    out = folder / "sample"
    out.mkdir()
    build_aar.compile_kotlin([sample / "kotlin", generated], out, [aar / "classes.jar"])
    assert (out / "dev/edgekd/sample/MainActivity.class").is_file()


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
