"""Importance: what does nothing scores nothing, and cutting it away changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    ViTConfig,
)

from edgekd.distill import pruning, student
from edgekd.errors import BadInput
from edgekd.recipe import Student

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_labels": 5,
}
TEXT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 40}
CONFIGS = {
    "bert": BertConfig(**TEXT),
    "roberta": RobertaConfig(**TEXT),
    "electra": ElectraConfig(**TEXT, embedding_size=12),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=16, n_layers=3, n_heads=4, hidden_dim=24, max_position_embeddings=40, num_labels=5
    ),
    "vit": ViTConfig(**SIZES, image_size=16, patch_size=8),
}
DEAD_NEURONS, DEAD_HEADS, DEAD_UNITS = [1, 5, 6, 20, 23], [2], [0, 9]


def kind_of(name: str) -> type:
    return AutoModelForImageClassification if name == "vit" else AutoModelForSequenceClassification


def model_of(name: str) -> nn.Module:
    """A network whose weights are large enough for every part to matter."""
    torch.manual_seed(3)
    model = kind_of(name).from_config(CONFIGS[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs_of(name: str, count: int = 6) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    if name == "vit":
        return {"pixel_values": torch.randn(count, 3, 16, 16)}
    mask = torch.ones(count, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    ids = torch.randint(4, 60, (count, 9))
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(**batch).logits
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 5)


def kill(model: nn.Module) -> None:
    """Cut the way out of some neurons and heads in every layer."""
    layers, roles = pruning.encoder(model)
    with torch.no_grad():
        for layer in layers:
            layer.get_submodule(roles.down).weight[:, DEAD_NEURONS] = 0
            layer.get_submodule(roles.out).weight[:, pruning.spread(torch.tensor(DEAD_HEADS), 4)] = 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("scored", [True, False], ids=["by data", "by weights"])
def test_parts_without_a_way_out_score_nothing_and_go_unnoticed(name: str, scored: bool) -> None:
    teacher, inputs = model_of(name), inputs_of(name)
    kill(teacher)
    found = pruning.importance(teacher, [inputs, inputs], loss)
    for heads, neurons in zip(found.heads, found.neurons, strict=True):
        assert (neurons == 0).nonzero().flatten().tolist() == DEAD_NEURONS
        assert (heads == 0).nonzero().flatten().tolist() == DEAD_HEADS
    shape = Student(layers=3, heads=3, intermediate_size=24 - len(DEAD_NEURONS))
    made = student.make(shape, teacher, kind_of(name), 0, importance=found if scored else None).eval()
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in teacher.parameters())
    torch.testing.assert_close(made(**inputs).logits, teacher(**inputs).logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_units_that_are_always_zero_score_nothing(name: str) -> None:
    teacher = model_of(name)
    layers, roles = pruning.encoder(teacher)
    norms = [m for n, m in teacher.named_modules() if isinstance(m, nn.LayerNorm) and m.normalized_shape == (16,)]
    writers = [layer.get_submodule(part) for layer in layers for part in (roles.out, roles.down)]
    with torch.no_grad():
        if name == "vit":  # nothing is written to them; its norms stand before the layers
            embeddings = teacher.vit.embeddings
            writers.append(embeddings.patch_embeddings.projection)
            embeddings.cls_token[..., DEAD_UNITS] = 0
            embeddings.position_embeddings[..., DEAD_UNITS] = 0
        else:
            writers += [teacher.electra.embeddings_project] if name == "electra" else norms
        for module in writers:
            module.weight[DEAD_UNITS] = 0
            module.bias[DEAD_UNITS] = 0
        if name == "electra":
            for module in norms:
                module.weight[DEAD_UNITS] = module.bias[DEAD_UNITS] = 0
    found = pruning.importance(teacher, [inputs_of(name)], loss)
    assert (found.hidden == 0).nonzero().flatten().tolist() == DEAD_UNITS


def test_scores_are_first_order() -> None:
    """Scaling a part by 1 + e moves the loss by e times its score, where there is one token to add up."""
    teacher = model_of("bert").double()
    one = {name: value[:1, :1] for name, value in inputs_of("bert").items()}
    found = pruning.importance(teacher, [one], loss)
    layers, roles = pruning.encoder(teacher)
    parts = {
        roles.down: (torch.tensor([7]), found.neurons[1][7]),
        roles.out: (pruning.spread(torch.tensor([1]), 4), found.heads[1][1]),
    }
    for name, (columns, score) in parts.items():
        weight = layers[1].get_submodule(name).weight
        kept = weight.detach().clone()
        moved = []
        for step in (1 + 1e-5, 1 - 1e-5):
            with torch.no_grad():
                weight.copy_(kept)
                weight[:, columns] *= step
                moved.append(float(loss(teacher, one)))
        with torch.no_grad():
            weight.copy_(kept)
        assert abs(moved[0] - moved[1]) / 2e-5 == pytest.approx(float(score), rel=1e-4)


def test_batches_are_averaged() -> None:
    teacher, inputs = model_of("bert"), inputs_of("bert")
    one = {name: value[:1, :5] for name, value in inputs.items()}
    both = pruning.importance(teacher, [one, inputs], loss)
    alone = [pruning.importance(teacher, [batch], loss) for batch in (one, inputs)]
    torch.testing.assert_close(both.hidden, (alone[0].hidden + alone[1].hidden) / 2)


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = model_of("bert").train().requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    first = pruning.importance(teacher, [inputs_of("bert")], loss)
    second = pruning.importance(teacher, [inputs_of("bert")], loss)
    torch.testing.assert_close(first.hidden, second.hidden, rtol=0, atol=0)  # no dropout, no hook left over
    assert teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_padding_does_not_change_the_scores() -> None:
    teacher = model_of("bert")
    short = {name: value[:1, :5] for name, value in inputs_of("bert").items()}
    padded = {name: value[:1] for name, value in inputs_of("bert").items()}  # the first row has five tokens
    one, other = (pruning.importance(teacher, [batch], loss) for batch in (short, padded))
    torch.testing.assert_close(one.hidden, other.hidden)
    torch.testing.assert_close(one.heads[0], other.heads[0])


def test_an_unknown_family_is_refused() -> None:
    model = AutoModelForSequenceClassification.from_config(MPNetConfig(**TEXT))
    with pytest.raises(BadInput, match="cannot be pruned"):
        pruning.importance(model, [], loss)
