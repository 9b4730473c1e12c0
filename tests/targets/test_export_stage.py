"""The export stage: a target's file with the Program's own files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd import artifact, recipe, registry
from edgekd.errors import BadInput
from edgekd.targets import stage

READS = ("task", "data.max_length", "export.max_length", "export.buckets")


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


def run(
    program: artifact.Artifact,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokens: Sequence[int] | None = None,
    **fields: Any,
) -> tuple[Any, list[int]]:
    """Facts, and the lengths that the target was asked for; with training texts of ``tokens`` it has fixed ones."""
    lengths = []

    def export(folder: Path, out: Path, *, max_length: int, shorter: Sequence[int] = ()) -> artifact.Facts:
        lengths.extend([*shorter, max_length])
        (out / "model.bin").write_bytes((folder / "program.pt2").read_bytes())
        return {"file": "model.bin", "size_bytes": 11}

    def encode(processor: Path, texts: Sequence[dict[str, int]], limit: int) -> list[dict[str, list[int]]]:
        assert processor == program.path  # its own tokenizer
        return [{"input_ids": [1] * min(text["tokens"], limit)} for text in texts]

    modules = {
        "targets": SimpleNamespace(export=export, fixed_length=tokens is not None),
        "tasks": SimpleNamespace(processor=lambda folder: folder, encode=encode),
    }
    monkeypatch.setattr(registry, "load", lambda group, name: modules[group])
    parents = {"quantize": program}
    if tokens is not None:
        part = artifact.partial_of(out.with_name(f"{out.name}-data"))
        part.mkdir()
        (part / "train.jsonl").write_text("".join(f'{{"tokens": {count}}}\n' for count in tokens))
        final = part.with_name(f"{out.name}-data")
        parents["data"] = artifact.seal(final, stage="data", label="", key="", facts={}, parents={}, tools={})
    view: Any = recipe.View(recipe.Recipe.model_validate(fields), READS)
    inputs = artifact.Inputs(parents=parents, variant={"target": "bin", "scheme": "w8a8"})
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


def test_fixed_lengths_are_planned_on_the_training_text(program, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    tokens, data = [3, 3, 4, 7, 8, 40], {"max_length": 16}
    facts, lengths = run(program, tmp_path / "one", monkeypatch, tokens, data=data)
    assert lengths == [16] and facts["padding"]["texts"] == 6
    assert facts["padding"]["share"] == pytest.approx(6 * 16 / 41 - 1, abs=1e-4)
    assert facts["padding"]["planned"]["3"] == {"lengths": [4, 8, 16], "share": pytest.approx(3 / 41, abs=1e-4)}
    _, lengths = run(program, tmp_path / "two", monkeypatch, tokens, data=data, export={"buckets": 2})
    assert lengths == [8, 16]
    facts, lengths = run(program, tmp_path / "named", monkeypatch, tokens, data=data, export={"buckets": [12, 5]})
    assert lengths == [5, 12, 16]  # the longest is max_length
    assert facts["padding"]["share"] == pytest.approx((3 * 5 + 2 * 12 + 16) / 41 - 1, abs=1e-4)
    shorter = {"buckets": 2, "max_length": 8}
    assert run(program, tmp_path / "short", monkeypatch, tokens, data=data, export=shorter)[1] == [4, 8]
    monkeypatch.setattr(stage, "COUNTED", 2)
    assert run(program, tmp_path / "few", monkeypatch, tokens, data=data)[0]["padding"]["texts"] == 2


def test_the_stage_is_not_taken_for_a_target() -> None:
    assert "stage" not in registry.names("targets")
    assert {"onnx", "litert", "coreml", "executorch"} <= set(registry.names("targets"))
