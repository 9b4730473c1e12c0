"""Towers against transformers' own features and logits; students of two towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _pictures import write_clip

from edgekd.distill import student
from edgekd.errors import BadInput
from edgekd.recipe import Student
from edgekd.teach import dual, transformers

TEXTS = ["red at the top", "a longer text about something green at the left", "blue"]

KEPT = [0, 1, *range(4, 290, 2)]  # of a trimmed vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    write_clip(made, TEXTS)
    return made


def inputs(folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    import transformers

    torch.manual_seed(1)
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    return torch.randn(3, 3, 16, 16), {name: encoded[name] for name in ("input_ids", "attention_mask")}


def loaded(folder: Path) -> Any:
    return transformers.model_class("zero-shot-image-classification").from_pretrained(folder).eval()


def test_embeddings_are_transformers_features_and_their_products_its_logits(folder: Path) -> None:
    from transformers import CLIPModel

    model, peer = loaded(folder), CLIPModel.from_pretrained(folder).eval()
    pixels, texts = inputs(folder)
    with torch.no_grad():
        image = model(pixel_values=pixels).pooler_output
        text = model(**texts).pooler_output
        torch.testing.assert_close(model(pixel_values=pixels, **texts).pooler_output[::2], image)
        torch.testing.assert_close(model(pixel_values=pixels, **texts).pooler_output[1::2], text)
        unit = torch.nn.functional.normalize
        torch.testing.assert_close(unit(image), unit(peer.get_image_features(pixel_values=pixels).pooler_output))
        torch.testing.assert_close(unit(text), unit(peer.get_text_features(**texts).pooler_output))
        torch.testing.assert_close(image @ text.T, peer(pixel_values=pixels, **texts).logits_per_image)
        for part, given, whole in (("image", {"pixel_values": pixels}, image), ("text", texts, text)):
            found = dual.tower(model, part)(**given, output_hidden_states=True)
            torch.testing.assert_close(found.pooler_output, whole)
            assert len(found.hidden_states) == 3


@pytest.mark.parametrize("end", [1, 2])
def test_the_pool_is_at_the_first_end_of_text_as_transformers_has_it(folder: Path, end: int) -> None:
    """2 is what old configurations say of every tokenizer: they mean the highest id."""
    from transformers import CLIPModel

    model, peer = loaded(folder), CLIPModel.from_pretrained(folder).eval()
    for one in (model, peer):
        one.text_model.config.eos_token_id = one.text_model.eos_token_id = end
    ids = torch.tensor([[0, 9, 1, 280, 1, 280], [0, 280, 7, 5, 1, 1], [0, 4, 5, 280, 1, 3]])
    with torch.no_grad():
        found, expected = model(input_ids=ids).pooler_output, peer.get_text_features(input_ids=ids).pooler_output
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(found), unit(expected))


def test_a_text_does_not_see_its_padding(folder: Path) -> None:
    model, (_, texts) = loaded(folder), inputs(folder)
    lengths = texts["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) == 3
    noise = torch.where(texts["attention_mask"] == 1, texts["input_ids"], 200)
    with torch.no_grad():
        among = model(input_ids=noise, attention_mask=texts["attention_mask"]).pooler_output
        for row, length in enumerate(lengths):
            alone = model(input_ids=texts["input_ids"][row : row + 1, :length]).pooler_output
            torch.testing.assert_close(alone[0], among[row])


def test_a_student_has_fewer_layers_in_both_towers_and_all_else_of_its_teacher(folder: Path, tmp_path: Path) -> None:
    teacher = loaded(folder).requires_grad_(False)
    made = student.make(Student(layers=1, take="last"), teacher, dual.CLIPModel, 0, kept=KEPT)
    assert all(parameter.requires_grad for parameter in made.parameters())
    state = teacher.state_dict()
    assert torch.equal(
        made.text_model.embeddings.token_embedding.weight,
        state["text_model.embeddings.token_embedding.weight"][KEPT],
    )
    for name, value in made.state_dict().items():
        if "token_embedding" not in name:
            assert torch.equal(value, state[name.replace("layers.0", "layers.1")]), name
    assert (made.config.text_config.vocab_size, made.config.text_config.eos_token_id) == (len(KEPT), 1)
    assert student.shape_of(made.config)["image_layers"] == student.shape_of(made.config)["text_layers"] == 1
    made.save_pretrained(tmp_path)
    from transformers import CLIPModel

    again = CLIPModel.from_pretrained(tmp_path)
    assert again.config.architectures == ["CLIPModel"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    with torch.no_grad():
        made.logit_scale.zero_()  # nothing is shared
    assert teacher.logit_scale.item() > 1


def test_a_trimmed_vocabulary_keeps_the_end_of_text_that_old_configurations_mean(folder: Path) -> None:
    teacher = loaded(folder)
    teacher.config.text_config.eos_token_id = teacher.text_model.eos_token_id = dual.LEGACY_END
    made = student.make(Student(layers=2), teacher, dual.CLIPModel, 0, kept=KEPT).eval()
    ids = torch.tensor([[1, 4, 8, 288, 288], [1, 9, 100, 6, 288]])
    ids -= ids % 2 * (ids > 1).long()  # kept ones
    with torch.no_grad():
        short = torch.tensor([[KEPT.index(one) for one in row] for row in ids.tolist()])
        torch.testing.assert_close(made(input_ids=short).pooler_output, teacher(input_ids=ids).pooler_output)


@pytest.mark.parametrize("shape", [{"hidden_size": 16}, {"heads": 2}, {"prune": "importance"}, {"embedding_size": 8}])
def test_a_width_cannot_be_named_for_two_towers(folder: Path, shape: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="cannot be set for two towers"):
        student.make(Student(**shape), loaded(folder), dual.CLIPModel, 0)


def test_a_student_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="bert model, not CLIP"):
        student.make(Student(model=str(tmp_path)), loaded(folder), dual.CLIPModel, 0)
