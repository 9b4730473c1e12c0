"""An Android bundle is a whole Gradle project with the one engine, tokenizer and demo that it needs.

Kotlin is compiled and run in ``tests/runtimes/test_android*.py``, which take minutes; here it is only parsed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from _material import ROOT
from tokenizers import Tokenizer, models, normalizers

from edgekd.bundle import android, stage
from edgekd.bundle._contract import App
from edgekd.errors import BadInput

SOURCES = ROOT / "runtimes" / "android"
CALLS = {
    "text-classification": ("EdgeClassifier", "classify("),
    "token-classification": ("EdgeTagger", "tag("),
    "question-answering": ("EdgeAnswerer", "answer("),
    "sentence-similarity": ("EdgeEmbedder", "embed("),
}


@pytest.fixture
def app(tmp_path: Path) -> App:
    """As a run would hand it over, but that the model is none."""
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(artifact / "tokenizer.json"))
    for name in ("model.onnx", "labels.json", "golden.json"):
        (artifact / name).write_text("{}")
    inputs = [{"name": name, "dtype": "int64", "shape": [1, -1]} for name in ("input_ids", "attention_mask")]
    return App(
        name="my-intents",
        task="text-classification",
        target="onnx",
        scheme="w8a8",
        artifact=artifact,
        export={"file": "model.onnx", "inputs": inputs, "max_length": 64},
        labels=("yes", "no"),
        pad_id=0,
        bound=0.01,
        verdict={"verdict": "pass", "reasons": []},
        measured={"metrics": {"accuracy": 0.9}},
        provenance={"edgekd": "0", "teacher": "t", "license": None},
        extra={},
    )


def made(app: App, out: Path, **change: Any) -> Path:
    stage.make(dataclasses.replace(app, **change), "android", out)
    return out


@pytest.mark.parametrize(
    ("target", "tokenizer", "task"),
    [
        *itertools.product(sorted(android.TARGETS), android.TOKENIZERS, ["text-classification"]),
        *(("onnx", "native", task) for task in sorted(android.TASKS)),
    ],
)
def test_a_bundle_has_what_it_needs_and_no_more(
    app: App, target: str, tokenizer: str, task: str, tmp_path: Path
) -> None:
    bundle = made(app, tmp_path / "app", target=target, tokenizer=tokenizer, task=task)
    code = bundle / "library/src/main/kotlin/dev/edgekd"
    assert {path.name for path in code.glob("*Engine.kt")} == {"Engine.kt", android.ENGINES[target]}
    assert {path.name for path in code.glob("*Encoder.kt")} == {"Encoder.kt", android.ENCODERS[tokenizer]}
    assets = bundle / "library/src/main/assets/edgekd/my-intents"
    assert json.loads((assets / "app.json").read_text())["target"] == target
    assert (assets / "model" / "tokenizer.json").is_file()
    kind, call = CALLS[task]
    for told in (
        (bundle / "sample/src/main/kotlin/dev/edgekd/sample/Demo.kt").read_text(),
        (bundle / "README.md").read_text(),
    ):
        assert f"{kind}.load(context)" in told and call in told
    assert not any("@EDGEKD" in path.read_text() for path in bundle.rglob("*") if path.is_file())
    assert 'rootProject.name = "my-intents"' in (bundle / "settings.gradle.kts").read_text()
    assert stage.verify(bundle)["passed"]
    catalogue = tomllib.loads((bundle / "gradle" / "libs.versions.toml").read_text())
    runtime = [catalogue["libraries"][name] for name in catalogue["bundles"]["runtime"]]
    assert runtime[0]["module"] == android.RUNTIMES[target]
    assert ("ai.djl.huggingface:tokenizers" in [one["module"] for one in runtime]) == (tokenizer == "library")
    for one in (*catalogue["libraries"].values(), *catalogue["plugins"].values()):
        assert one["version"]["ref"] in catalogue["versions"]


def test_the_same_run_gives_the_same_bytes(app: App, tmp_path: Path) -> None:
    one, two = made(app, tmp_path / "one"), made(app, tmp_path / "two")
    for path in sorted(one.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_build_files_name_what_the_catalogue_has(app: App, tmp_path: Path) -> None:
    bundle = made(app, tmp_path / "app")
    catalogue = tomllib.loads((bundle / "gradle" / "libs.versions.toml").read_text())
    known = {f"versions.{name}" for name in catalogue["versions"]} | {f"plugins.{n}" for n in catalogue["plugins"]}
    known |= {f"bundles.{name}" for name in catalogue["bundles"]} | set(catalogue["libraries"])
    known = {name.replace("-", ".") for name in known}
    for path in bundle.rglob("*.gradle.kts"):
        for name in re.findall(r"libs\.([\w.]+?)(?:\.get\(|\))", path.read_text()):
            assert name in known, (path.name, name)
    for name in ("library", "sample"):  # a compressed model cannot be mapped
        assert 'noCompress += listOf("onnx", "tflite", "pte")' in (bundle / name / "build.gradle.kts").read_text()


def test_xml_and_kotlin_parse(app: App, tmp_path: Path) -> None:
    bundle = made(app, tmp_path / "app")
    for path in bundle.rglob("*.xml"):
        ET.parse(path)
    grammar = pytest.importorskip("tree_sitter_kotlin", reason="tree-sitter-kotlin is not installed")
    tree_sitter = pytest.importorskip("tree_sitter", reason="tree-sitter is not installed")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    paths = [*SOURCES.rglob("*.kt"), *bundle.rglob("*.kts")]
    assert len(paths) > 30
    wrong = [str(path) for path in paths if parser.parse(path.read_bytes()).root_node.has_error]
    assert not wrong
    assert parser.parse(b"fun broken( {").root_node.has_error


def test_the_core_knows_nothing_of_android() -> None:
    for folder in ("core", "engines", "encoders", "jvm"):
        for path in (SOURCES / folder).rglob("*.kt"):
            assert not re.search(r"^import (android|androidx|kotlinx)\.", path.read_text(), re.MULTILINE), path


def test_the_tables_are_those_of_the_cpp_core() -> None:
    """The same numbers, written in another way."""
    kotlin = (SOURCES / "core/dev/edgekd/text/UnicodeTables.kt").read_text(encoding="utf-8")
    cpp = (ROOT / "runtimes/linux/text/unicode_tables.hpp").read_text(encoding="utf-8")
    made_from = re.compile(r"// Made by unicode_tables.py from tokenizers (\S+):")
    assert made_from.findall(kotlin) == made_from.findall(cpp)
    flags = {name.upper(): value for name, value in re.findall(r"uint16_t k(\w+) = (\d+);", cpp)}
    assert flags == dict(re.findall(r"const val (\w+) = (\d+)", kotlin))

    def numbers(name: str) -> list[int]:
        [table] = re.findall(rf"val {name} = arrayOf\((.*?)\n    \)", kotlin, re.DOTALL)
        return [int(one, 36) for line in re.findall(r'"(.*?)"', table) for one in line.split()]

    def entries(name: str) -> list[list[int]]:
        [table] = re.findall(rf"{name}\[\] = \{{(.*?)\n\}};", cpp, re.DOTALL)
        return [[int(one, 0) for one in entry.split(",")] for entry in re.findall(r"\{(.*?)\}", table)]

    [pool] = re.findall(r"kPool\[\] = \{.*?\n(.*?)\n\};", cpp, re.DOTALL)
    characters = [int(one, 16) for one in re.findall(r"0x[0-9a-f]+", pool)]
    for mine, theirs in (("FLAGS", "kFlags"), ("COMBINING_CLASSES", "kCombiningClass")):
        expected, before = [], 0
        for code, value in entries(theirs):
            expected += [code - before, value]
            before = code
        assert numbers(mine) == expected
    for mine, theirs in (("DECOMPOSITIONS", "kDecomposition"), ("LOWERCASES", "kLowercase")):
        expected, before = [], 0
        for code, start, count in entries(theirs):
            expected += [code - before, count, *characters[start : start + count]]
            before = code
        assert numbers(mine) == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"target": "coreml"}, "android has no library for the target coreml"),
        ({"task": "image-classification"}, "no library for the task image-classification"),
        ({"tokenizer": "own"}, "no library for the tokenizer own"),
        ({"name": "My Intents"}, "no package name"),
    ],
)
def test_what_cannot_work_is_told_and_nothing_is_written(
    app: App, change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=told):
        made(app, tmp_path / "app", **change)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_tokenizer_without_a_core_needs_the_library(app: App, tmp_path: Path) -> None:
    other = Tokenizer(models.Unigram([("a", 0.0)], 0, False))
    other.normalizer = normalizers.NFKC()
    other.save(str(app.artifact / "tokenizer.json"))
    with pytest.raises(BadInput, match=r"no native core runs the normalizer NFKC.*--tokenizer library"):
        made(app, tmp_path / "app")
    assert (made(app, tmp_path / "app", tokenizer="library") / "library").is_dir()
