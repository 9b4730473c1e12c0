"""The export stage: a target's file with the Program's own files beside it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd import artifact, recipe, registry
from edgekd.errors import BadInput
from edgekd.targets import stage

READS = ("task", "data.max_length", "export.max_length")


@pytest.fixture
def program(tmp_path) -> artifact.Artifact:  # type: ignore[no-untyped-def]
    """A finished Program of 16 tokens whose files are only names."""
    part = artifact.partial_of(tmp_path / "program")
    part.mkdir()
    for name in ("program.pt2", "reference.safetensors", "golden.json", "labels.json", "tokenizer.json", "vocab.txt"):
        (part / name).write_text(name)
    facts = {"scheme": "w8a8", "max_length": 16}
    return artifact.seal(
        tmp_path / "program", stage="quantize", label="w8a8", key="", facts=facts, parents={}, tools={}
    )


def run(program: artifact.Artifact, out: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[Any, list[int]]:
    """Facts, and the lengths that the target was asked for."""
    lengths = []

    def export(folder: Path, out: Path, *, max_length: int) -> artifact.Facts:
        lengths.append(max_length)
        (out / "model.bin").write_bytes((folder / "program.pt2").read_bytes())
        return {"file": "model.bin", "size_bytes": 11}

    monkeypatch.setattr(registry, "load", lambda group, name: SimpleNamespace(export=export))
    view: Any = recipe.View(recipe.Recipe.model_validate(fields), READS)
    inputs = artifact.Inputs(parents={"quantize": program}, variant={"target": "bin", "scheme": "w8a8"})
    out.mkdir()
    return stage.run(view, inputs, out), lengths


def test_it_ships_the_model_and_what_an_app_needs(program, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    facts, lengths = run(program, tmp_path / "out", monkeypatch, data={"max_length": 16})
    assert lengths == [16]
    assert facts == {"target": "bin", "scheme": "w8a8", "file": "model.bin", "size_bytes": 11}
    shipped = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    beside = ("golden.json", "labels.json", "tokenizer.json", "vocab.txt")
    assert shipped == {"model.bin": "program.pt2", **{name: name for name in beside}}


def test_a_shorter_length_is_the_targets_and_a_longer_one_is_refused(program, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    fields: Any = {"data": {"max_length": 16}, "export": {"max_length": 8}}
    assert run(program, tmp_path / "short", monkeypatch, **fields)[1] == [8]
    fields["export"]["max_length"] = 17
    with pytest.raises(BadInput, match=r"export\.max_length: 17 tokens are more than the 16"):
        run(program, tmp_path / "long", monkeypatch, **fields)


def test_the_stage_is_not_taken_for_a_target() -> None:
    assert "stage" not in registry.names("targets")
    assert {"onnx", "litert", "coreml", "executorch"} <= set(registry.names("targets"))
