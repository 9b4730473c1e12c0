"""Jobs, artefacts and data small enough to make on the spot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _embedding_sum import WORDS, logits_of, row, write_onnx, write_tokenizer

from edgekd import artifact, registry

RUNNER = registry.folder("runtimes") / "linux" / "python" / "edgekd_runner.py"


@pytest.fixture(scope="session")
def runner_file() -> Path:
    return RUNNER


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    write_onnx(path)
    return path


@pytest.fixture
def job(tiny_onnx: Path) -> dict[str, Any]:
    return {
        "schema": "edgekd/runner/1",
        "phase": "outputs",
        "runtime": "onnx",
        "model": str(tiny_onnx),
        "threads": 1,
        "rows": [row(1, 2, 3), row(4, 5)],
    }


@pytest.fixture
def runner() -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    """Run the runner on lines of stdin; its exit code and the documents on its stdout."""

    def call(*lines: Any, **options: Any) -> tuple[int, list[dict[str, Any]]]:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        done = subprocess.run(
            [sys.executable, str(RUNNER)], input=text, capture_output=True, text=True, timeout=120, **options
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    return call


def seal(path: Path, facts: dict[str, Any]) -> artifact.Artifact:
    return artifact.seal(
        path, stage=facts.get("stage", "export"), label=path.name, key="k", facts=facts, parents={}, tools={}
    )


@pytest.fixture
def data(tmp_path: Path) -> artifact.Artifact:
    """A test split of texts of 3 and of 9 words, most of them short, and a tokenizer of one token a word."""
    part = artifact.partial_of(tmp_path / "data")
    (part / "tokenizer").mkdir(parents=True)
    write_tokenizer(part / "tokenizer")
    sizes = [3] * 20 + [9] * 5
    examples = [{"text": " ".join(WORDS[n % 30 : n % 30 + size]), "label": 0} for n, size in enumerate(sizes)]
    (part / "test.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    return seal(tmp_path / "data", {"stage": "data", "pad_token_id": 0, "labels": ["a", "b", "c"]})


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., artifact.Artifact]:
    """``export("onnx", "fp32", content=None, fixed=False)``: an artefact folder like the export stage's."""

    def make(target: str, scheme: str, content: bytes | None = None, fixed: bool = False) -> artifact.Artifact:
        path = tmp_path / f"{target}-{scheme}"
        part = artifact.partial_of(path)
        part.mkdir()
        if content is None:
            write_onnx(part / "model.onnx")
        else:
            (part / "model.onnx").write_bytes(content)
        write_tokenizer(part)
        golden = [[1, 2, 3, 4], [5, 6]]
        artifact.write_json(
            part / "golden.json",
            {
                "texts": ["", ""],
                "inputs": {"input_ids": golden, "attention_mask": [[1] * len(ids) for ids in golden]},
                "outputs": {"logits": [logits_of(ids).tolist() for ids in golden]},
            },
        )
        facts = {
            "target": target,
            "scheme": scheme,
            "file": "model.onnx",
            "size_bytes": 1,
            "inputs": [{"name": n, "dtype": "int64", "shape": [1, 12]} for n in ("input_ids", "attention_mask")],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 3]}],
            "max_length": 12,
            "fixed_length": fixed,
            "lengths": [12] if fixed else [],
        }
        return seal(path, facts)

    return make
