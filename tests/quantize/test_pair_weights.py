"""int4 weights that a library chooses, in both halves of a model that reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _pairs import KINDS, PAIRS, folder, program, table
from safetensors.torch import load_file
from torch import nn

from edgekd import pipeline, recipe
from edgekd.generators import _contract, stage
from edgekd.generators import onnxruntime as writer
from edgekd.quantize import scheme as schemes
from edgekd.quantize import tokens, weights
from edgekd.tasks import text2text_generation as task

PARTS = {  # of a layer's name, by the half that it is in; T5 numbers what Marian and BART name
    "self-attention": ("self_attn", "SelfAttention"),
    "cross-attention": ("encoder_attn", "EncDecAttention"),
    "feed-forward": ("fc", "DenseReluDense"),
}
Made = Callable[[str, str], tuple[Path, weights.Numbers]]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: folder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def made(students: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The Program of a student of some kind, its weights chosen in some way, and what the library had answered."""

    @cache
    def program_of(kind: str, how: str) -> tuple[Path, weights.Numbers]:
        pytest.importorskip("neural_compressor")
        theirs: weights.Numbers = {}
        ask = weights._from_library

        def library(*given: Any) -> weights.Numbers:
            theirs.update(ask(*given))
            return theirs

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, "_from_library", library)
            return program(students[kind], "w4", tmp_path_factory.mktemp(how) / kind, how=how), theirs

    return program_of


def rows(student: Path) -> list[dict[str, Any]]:
    """What ``_pairs.program`` calibrates on."""
    return task.encode(task.processor(student), PAIRS[:40], 64)


def part_of(name: str) -> str:
    (part,) = (part for part, words in PARTS.items() if any(word in name for word in words))
    return f"{'decoder' if 'decoder.' in name else 'encoder'} {part}"


def losses(student: Path, held: dict[str, torch.Tensor]) -> dict[str, float]:
    """Squared error by part of what the layers of a Program's file give for what the float student feeds them."""
    model = tokens.load_student(student)
    layers = {name: layer for name, layer in model.named_modules() if f"{name}.scale" in held}
    found, hooks = {}, []
    for name, layer in layers.items():
        weight_q, scale = held[f"{name}.weight"].double(), held[f"{name}.scale"].double()
        if scale.shape[1] == 1:
            continue
        lost = layer.weight.double() - weight_q * scale.repeat_interleave(weight_q.shape[1] // scale.shape[1], 1)

        def note(_: nn.Module, given: Any, __: Any, part: str = part_of(name), lost: torch.Tensor = lost) -> None:
            found[part] = found.get(part, 0.0) + float((given[0].double() @ lost.T).square().sum())

        hooks.append(layer.register_forward_hook(note))
    with torch.no_grad():
        for row in rows(student):
            model(**{name: torch.tensor([row[name]]) for name in task.INPUTS})
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_loses_less_than_rounding_in_every_part_of_both_halves(
    students: dict[str, Path], made: Made, kind: str
) -> None:
    plain, better = (
        losses(students[kind], load_file(made(kind, how)[0] / tokens.NUMBERS)) for how in ("absmax", "gptq")
    )
    halves = [f"{half} {part}" for half in ("encoder", "decoder") for part in PARTS]
    assert sorted(better) == sorted(plain) == sorted(set(halves) - {"encoder cross-attention"})
    assert all(better[part] < 0.9 * plain[part] for part in plain), (plain, better)


@pytest.mark.parametrize("how", weights.LIBRARY)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_chose_is_in_the_program_and_in_its_artefact(
    made: Made, kind: str, how: str, tmp_path: Path
) -> None:
    """Every layer of both stacks: its integers as they are, its scales at their nearest on the Program's grid."""
    found, theirs = made(kind, how)
    held = load_file(found / tokens.NUMBERS)
    assert len(theirs) == 2 * (6 + 10)
    for name, (weight_q, scale) in theirs.items():
        assert held[f"{name}.weight"].dtype == torch.int8 and weight_q.min() >= -8 and weight_q.max() <= 7
        assert torch.equal(held[f"{name}.weight"].float(), weight_q) and len(weight_q.unique()) > 8
        assert torch.equal(held[f"{name}.scale"], tokens.grid_scale(scale))
    writer.export(found, tmp_path, max_length=64)
    assert stage.compared(_contract.read_numbers(found), writer.numbers(tmp_path))["missing"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_called_as_the_model_calls_them(students: dict[str, Path], kind: str) -> None:
    """With a source's states, with a bias that another block made, without padding; lists in a block are hidden."""
    model, names = tokens.load_student(students[kind]), []
    batches = weights._alike(rows(students[kind]), task.INPUTS, 16)
    assert sum(map(len, batches)) == 40 and max(map(len, batches)) > 1
    inputs = [weights.pad(some, 0, task.INPUTS) | {"use_cache": False} for some in batches]
    assert all(bool(one["attention_mask"].all()) for one in inputs)
    for name, block in weights._blocks(model):
        names.append(name)
        stack = weights._Stack(block, weights._calls(model, block, inputs))
        assert [type(one) for one in stack.modules()].count(nn.ModuleList) == 1
        mine, theirs = [stack(i) for i in range(len(inputs))], []
        del block.forward
        handle = block.register_forward_hook(lambda _, __, answer, seen=theirs: seen.append(answer))
        with torch.no_grad():
            for one in inputs:
                model(**one)
        handle.remove()
        for pair in zip(mine, theirs, strict=True):
            assert torch.equal(*(one[0] if isinstance(one, tuple) else one for one in pair))
    assert ["decoder." in name for name in names] == [False, False, True, True]


@pytest.mark.parametrize("how", weights.LIBRARY)
def test_a_block_of_gptq_reads_what_rounded_blocks_give(
    students: dict[str, Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through both halves, as its authors do; AWQ's clipping reads what the float model gives, as in the library."""
    pytest.importorskip("neural_compressor")
    student, ask, last = tokens.load_student(students["marian"]), weights._calls, []

    def calls(*given: Any) -> list[Any]:
        last[:] = ask(*given)
        return list(last)

    monkeypatch.setattr(weights, "_calls", calls)
    some = rows(students["marian"])[:1]
    theirs = weights._from_library(student, schemes.generative("w4"), how, some, task, 0)
    if how == "gptq":
        for name, (weight_q, scale) in theirs.items():
            student.get_submodule(name).weight.data = weight_q * scale.repeat_interleave(32, 1)
    handle = student.model.decoder.layers[-1].register_forward_pre_hook(lambda _, given: seen.extend(given))
    seen: list[torch.Tensor | None] = []
    with torch.no_grad():
        student(**weights.pad(some, 0, task.INPUTS))
    handle.remove()
    (hidden, _, states), _ = last[0]
    assert torch.equal(hidden, seen[0]) and torch.equal(states, seen[2])


def test_the_facts_tell_how_many_layers_were_chosen(tmp_path: Path) -> None:
    """Those that int4 does not fit are none of them; and the Program of a recipe is nearer than with ``absmax``."""
    pytest.importorskip("neural_compressor")
    narrow = folder(tmp_path / "student", "marian", layers=1, encoder_ffn_dim=80)
    for name, some in (("train", PAIRS[:60]), ("validation", PAIRS[120:150]), ("test", PAIRS[150:160])):
        table(tmp_path / f"{name}.jsonl", some)
    sections = {
        "task": "text2text-generation",
        "teacher": {"model": str(narrow)},
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")},
        "distill": {"student": {"model": str(narrow)}, "max_steps": 0},
        "quantize": {"schemes": ["w4"], "method": "ptq"},
        "export": {"targets": ["onnxruntime"]},
    }
    facts = {}
    for how in ("absmax", *weights.LIBRARY):
        sections["quantize"] |= {"weights": how}  # type: ignore[operator]
        made = recipe.parse(yaml.safe_dump(sections))
        facts[how] = pipeline.run(made, tmp_path / "run", until="quantize").facts("quantize-w4")
        assert facts[how]["calibration"]["layers"] == {how: 6 + 10 - 1}
    distances = {how: one["trace"][0]["distance"] for how, one in facts.items()}
    assert distances["gptq"] < 0.9 * distances["absmax"]
