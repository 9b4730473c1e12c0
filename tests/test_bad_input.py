"""Bad recipes, data, teachers and environments: one line that says what, where and what to do; never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd import cli

Change = Callable[[Path], None]
GOOD = "text,label\n" + "".join(
    f"{word} number {n},{label}\n"
    for n in range(20)
    for word, label in (("apple", "fruit"), ("tin", "metal"), ("nile", "river"))
)


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def config(**change: object) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "teacher" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return apply


def remove(name: str) -> Change:
    def apply(folder: Path) -> None:
        target = folder / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return apply


def recipe(old: str, new: str) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "recipe.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return apply


def both(first: Change, second: Change) -> Change:
    def apply(folder: Path) -> None:
        first(folder)
        second(folder)

    return apply


CASES: dict[str, tuple[Change, int, list[str]]] = {
    # the recipe
    "no recipe file": (remove("recipe.yaml"), 2, ["recipe.yaml", "no such recipe", "edgekd init"]),
    "not utf-8 recipe": (text("recipe.yaml", b"name: \xff\n"), 2, ["not UTF-8", "byte 6"]),
    "broken yaml": (text("recipe.yaml", "name: [\n"), 2, ["recipe.yaml:2", "not valid YAML"]),
    "unknown section": (recipe("distill:", "distil:"), 2, ["'distil'", "Did you mean 'distill'?"]),
    "unknown field": (recipe("epochs:", "epoch:"), 2, ["'distill.epoch'", "Did you mean 'epochs'?"]),
    "wrong type": (recipe("epochs: 1", "epochs: lots"), 2, ["distill.epochs", "lots"]),
    "out of range": (recipe("epochs: 1", "alpha: 3"), 2, ["distill.alpha", "less than or equal to 1"]),
    "no teacher": (recipe("teacher: {model: teacher}", "seed: 1"), 2, ["teacher.model is not set"]),
    "no data": (recipe("train: train.csv, ", ""), 2, ["data.train is not set"]),
    "unknown task": (
        recipe("name: bad", "task: text-clasification"),
        2,
        ["Did you mean 'text-classification'?"],
    ),
    "unknown target": (recipe("[onnx]", "[onxx]"), 2, ["unknown target 'onxx'", "Did you mean 'onnx'?"]),
    "unknown scheme": (
        recipe("quantize: {", "quantize: {schemes: [w8a9], "),
        2,
        ["unknown scheme 'w8a9'", "w8a8"],
    ),
    "target twice": (recipe("[onnx]", "[onnx, onnx]"), 2, ["export.targets names one twice"]),
    "no target": (recipe("[onnx]", "[]"), 2, ["export.targets is empty"]),
    "a bucket twice": (recipe("[onnx]", "[onnx], buckets: [8, 8]"), 2, ["export.buckets", "a length twice"]),
    "a bucket too long": (
        recipe("[onnx]", "[onnx], buckets: [8, 17]"),
        2,
        ["export.buckets has a length of 17 tokens, max_length is 16", "drop the longer ones"],
    ),
    "heads do not divide": (recipe("{layers: 1}", "{heads: 5}"), 2, ["5 heads do not divide hidden_size 32"]),
    "more layers than the teacher": (
        recipe("{layers: 1}", "{layers: 9}"),
        2,
        ["layers is 9, its source has 2"],
    ),
    "unknown loss": (
        recipe("epochs: 1", "losses: [{loss: forwrd-kl}]"),
        2,
        ["unknown loss 'forwrd-kl'", "Did you mean 'forward-kl'?"],
    ),
    "a layer that is not there": (
        recipe("epochs: 1", "losses: [{loss: hidden-mse, layers: [[1, 7]]}]"),
        2,
        ["layers [1, 7]", "the teacher 0 to 2"],
    ),
    "relation heads that do not divide": (
        recipe("epochs: 1", "losses: [{loss: minilm, heads: 5}]"),
        2,
        ["5", "heads"],
    ),
    "a cache too large": (
        recipe("epochs: 1", "losses: [{loss: attention-kl}]\nteach: {max_cache_gb: 1.0e-6}"),
        2,
        ["cache would take", "teach.max_cache_gb", "teach.online"],
    ),
    "unknown augmentation": (
        recipe("max_length: 16", "max_length: 16, augment: {copies: 1, methods: {delet: 1}}"),
        2,
        ["'delet'", "Did you mean 'delete'?"],
    ),
    "a vocabulary that nothing trims": (
        recipe("{layers: 1}", "{vocabulary_size: 900}"),
        2,
        ["distill.student", "vocabulary_size fills a trimmed vocabulary"],
    ),
    "student is no model": (recipe("{layers: 1}", "{model: nowhere}"), 2, ["nowhere", "cannot be loaded"]),
    # the data
    "no train file": (remove("train.csv"), 2, ["train.csv", "no such file"]),
    "empty train file": (text("train.csv", ""), 2, ["train.csv", "is empty"]),
    "header only": (text("train.csv", "text,label\n"), 2, ["train.csv", "has no rows"]),
    "not utf-8 data": (
        text("train.csv", b"text,label\nna\xefve,fruit\n"),
        2,
        ["not UTF-8 (byte 13)", "Save it as UTF-8"],
    ),
    "missing column": (
        text("train.csv", GOOD.replace("text,", "utterance,")),
        2,
        ["no column 'text'", "utterance", "data.columns"],
    ),
    "unknown label": (
        text("train.csv", GOOD + "a pear,friut\n"),
        2,
        ["row 61", "unknown label 'friut'", "'fruit'"],
    ),
    "one class only": (
        text("train.csv", "text,label\n" + "an apple,fruit\n" * 9),
        2,
        ["every row has the label 'fruit'"],
    ),
    "ragged csv": (text("train.csv", GOOD + "a,b,c,d\n"), 2, ["train.csv", "not valid CSV"]),
    "broken jsonl": (
        both(recipe("train.csv", "t.jsonl"), text("t.jsonl", '{"text": "a"\n')),
        2,
        ["t.jsonl:1", "not valid JSON"],
    ),
    "unknown kind of file": (
        both(recipe("train.csv", "t.xls"), text("t.xls", "x")),
        2,
        ["unknown kind of file '.xls'"],
    ),
    "column map of nothing": (recipe("max_length: 16", "columns: {txt: a}"), 2, ["data.columns names 'txt'"]),
    "labels in another order": (
        recipe("max_length: 16", "labels: [metal, fruit, river]"),
        2,
        ["another order", "label 0 is 'fruit'"],
    ),
    "labels that differ": (recipe("max_length: 16", "labels: [fruit, metal, lake]"), 2, ["differ", "'lake'"]),
    # the teacher
    "no teacher folder": (remove("teacher"), 2, ["teacher", "cannot be loaded"]),
    "folder without config": (remove("teacher/config.json"), 2, ["no config.json"]),
    "another architecture": (
        config(architectures=["BertForMaskedLM"]),
        2,
        ["BertForMaskedLM", "not a sequence classifier"],
    ),
    "broken weights": (text("teacher/model.safetensors", b"\x00" * 64), 2, ["weights cannot be loaded"]),
    "no tokenizer": (
        both(remove("teacher/tokenizer.json"), remove("teacher/tokenizer_config.json")),
        2,
        ["tokenizer"],
    ),
    # the environment
    "run folder is a file": (text("run", "x"), 2, ["is a file, not a run folder"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, tiny, tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    change, code, expected = CASES[case]
    shutil.copytree(tiny.folder / "teacher", tmp_path / "teacher")
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "recipe.yaml").write_text(
        "name: bad\nteacher: {model: teacher}\ndata: {train: train.csv, max_length: 16}\n"
        "distill:\n  student: {layers: 1}\n  epochs: 1\nquantize: {steps: 0}\nexport: {targets: [onnx]}\n"
    )
    change(tmp_path)
    said = call(["ship", "recipe.yaml", "--run-dir", "run", "--json", "--quiet"], tmp_path, monkeypatch, capfd)
    check(said, code, expected)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["ship"], 2, ["Missing argument"]),
        (["shipp", "x.yaml"], 2, ["No such command"]),
        (["ship", "x.yaml", "--set", "distill.epochs"], 2, ["no such recipe"]),
        (["init", "--task", "texting"], 2, ["unknown task 'texting'"]),
        (["report", "nowhere"], 2, ["nowhere"]),
    ],
)
def test_bad_arguments(arguments: list[str], code: int, expected: list[str], tmp_path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    said = call(arguments, tmp_path, monkeypatch, capfd)
    assert said[0] == code
    for part in expected:
        assert part in said[2]
    assert "Traceback" not in said[2]


def test_a_run_in_use_is_refused(tiny, tmp_path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    from edgekd.pipeline import locked

    with locked(tmp_path / "run"):
        said = call(
            ["ship", str(tiny.folder / "recipe.yaml"), "--run-dir", "run", "--json"],
            tmp_path,
            monkeypatch,
            capfd,
        )
    check(said, 3, ["another edgekd works on this run"])


def test_a_missing_package_is_an_environment_error(tiny, tmp_path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    import importlib.util

    from edgekd.errors import Environment
    from edgekd.targets._contract import require

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[coreml\]'") as raised:
        require("coremltools", "coreml")
    assert raised.value.exit_code == 3


def test_a_full_disk_is_said_and_nothing_made_is_lost(tiny, tmp_path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    import edgekd.data.stage as stage

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), "model.bin")

    monkeypatch.setattr(stage, "write_atomic", full)
    said = call(
        ["teach", str(tiny.folder / "recipe.yaml"), "--run-dir", "run", "--json"],
        tmp_path,
        monkeypatch,
        capfd,
    )
    check(said, 3, ["model.bin", "No space left on device", "the same command goes on"])


def call(arguments: list[str], cwd: Path, monkeypatch, capfd) -> tuple[int, str, str]:  # type: ignore[no-untyped-def]
    """The command line in this process (imports are paid once), with file descriptors captured."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr("sys.argv", ["edgekd", *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    return int(ended.value.code or 0), out, err


def check(said: tuple[int, str, str], code: int, expected: list[str]) -> None:
    found, out, err = said
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert found == code, err
    assert len(lines) == 1, err
    for part in expected:
        assert part in lines[0]
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == code
