"""Students of models with an encoder and a decoder: whole layers of both halves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _language import model_of as causal
from _pairs import PAIRS, folder, model_of

from edgekd.distill import student
from edgekd.errors import BadInput
from edgekd.recipe import Student
from edgekd.tasks import text2text_generation as task
from edgekd.teach.transformers import predict

PATHS = {"marian": ("model.encoder.layers", "model.decoder.layers"), "t5": ("encoder.block", "decoder.block")}


def auto() -> type:
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM


@pytest.mark.parametrize("kind", ["marian", "bart", "t5"])
def test_each_half_takes_layers_of_its_own(kind: str) -> None:
    teacher = model_of(kind, 300, layers=4)
    made = student.make(Student(layers=2, decoder_layers=1), teacher, auto(), 0)
    shape = student.shape_of(made.config)
    assert (shape["layers"], shape["decoder_layers"], shape["hidden_size"]) == (2, 1, 64)
    mine, theirs = made.state_dict(), teacher.state_dict()
    encoder, decoder = PATHS.get(kind, PATHS["marian"])
    for half, pairs in ((encoder, {0: 0, 1: 3}), (decoder, {0: 3})):
        for layer, source in pairs.items():
            start = f"{half}.{layer}."
            names = [name for name in mine if name.startswith(start)]
            assert names
            for name in names:
                other = f"{half}.{source}.{name.removeprefix(start)}"
                other = other if other in theirs else f"{half}.0.{name.removeprefix(start)}"  # T5's position biases
                assert torch.equal(mine[name], theirs[other]), name
    outside = [name for name in mine if not name.startswith((f"{encoder}.", f"{decoder}."))]
    assert outside and all(torch.equal(mine[name], theirs[name]) for name in outside)


def test_a_whole_copy_answers_as_its_teacher_and_is_loaded_again(tmp_path: Path) -> None:
    teacher = auto().from_pretrained(folder(tmp_path / "teacher", "t5")).eval()
    made = student.make(Student(layers=2), teacher, auto(), 0).eval()
    student.save(made, tmp_path / "teacher", tmp_path / "student")
    again = student.load(tmp_path / "student", auto())
    rows = task.encode(task.processor(tmp_path / "student"), PAIRS[:3], 48)
    for one, other, third in zip(*(predict(net, task, rows, 0) for net in (teacher, made, again)), strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, third)


def test_half_of_both_by_default_and_as_many_as_asked() -> None:
    teacher = model_of("t5", 300, layers=4, num_decoder_layers=2)
    sizes = {}
    for asked in (Student(), Student(layers=3), Student(take=[0, 1])):
        shape = student.shape_of(student.make(asked, teacher, auto(), 0).config)
        sizes[str(asked.layers or asked.take)] = (shape["layers"], shape["decoder_layers"])
    assert sizes == {"uniform": (2, 1), "3": (3, 2), "[0, 1]": (2, 2)}


def test_refusals() -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(BadInput, match="source has 2"):
        student.make(Student(layers=1, decoder_layers=3), model_of("marian", 300), auto(), 0)
    with pytest.raises(BadInput, match="no encoder and decoder"):
        student.make(Student(decoder_layers=1), causal("qwen3", 300), AutoModelForCausalLM, 0)


def test_what_a_student_costs_is_known() -> None:
    told = student.summary(model_of("marian", 300), [], 12)
    assert told["flops"] > 0 and told["parameters"] == sum(p.numel() for p in model_of("marian", 300).parameters())
