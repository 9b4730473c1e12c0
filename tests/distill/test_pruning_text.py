"""Language models cut in width: what does nothing goes unnoticed, and transformers and generators know the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _language import model_of
from torch import nn

from edgekd.distill import pruning, student
from edgekd.errors import BadInput
from edgekd.recipe import Student

KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {},
    "llama": {"tied": False, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": None},
}
UNITS, NEURONS = [0, 9, 33, 63, *range(40, 52)], [1, 5, 94, *range(50, 79)]  # of 64 and 96; 48 and 64 are left


def teacher_of(kind: str, **sizes: Any) -> nn.Module:
    """Eight heads of queries, two of keys and values."""
    return model_of(kind, 300, seed=3, **{"num_attention_heads": 8, **KINDS[kind], **sizes}).eval()


def auto() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    mask = torch.ones(6, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    return {"input_ids": torch.where(mask == 1, torch.randint(3, 300, (6, 9)), 0), "attention_mask": mask}


def loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    real = inputs["attention_mask"][:, 1:] == 1
    return nn.functional.cross_entropy(model(**inputs).logits[:, :-1][real], inputs["input_ids"][:, 1:][real])


def kill(model: Any, heads: list[int], neurons: list[int], units: list[int]) -> None:
    """Take the way out of heads and neurons, and everything that writes to units of the residual stream."""
    layers, roles = pruning.encoder(model)
    size = pruning.head_shape(layers[0], roles)[1]
    with torch.no_grad():
        for layer in layers:
            out, down = (layer.get_submodule(name) for name in (roles.out, roles.down))
            out.weight[:, pruning.spread(torch.tensor(heads, dtype=torch.int64), size)] = 0
            down.weight[:, neurons] = 0
            for module in (out, down):
                module.weight[units] = 0
                if module.bias is not None:
                    module.bias[units] = 0
        model.get_input_embeddings().weight[:, units] = 0


def same(made: Any, teacher: Any) -> None:
    inputs = batch()
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        torch.testing.assert_close(made(**inputs).logits[real], teacher(**inputs).logits[real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scored", [True, False], ids=["by data", "by weights"])
@pytest.mark.parametrize(
    ("dead", "shared"), [([0, 1, 2, 3], 1), ([0, 1, 3, 4, 6, 7], 2)], ids=["a group of heads", "three of each group"]
)
def test_parts_without_a_way_out_go_unnoticed(
    kind: str, scored: bool, dead: list[int], shared: int, tmp_path: Path
) -> None:
    """Eight heads of queries share two of keys and values: four keep one of these, two keep both."""
    teacher = teacher_of(kind)
    kill(teacher, dead, NEURONS, [])
    found = pruning.importance(teacher, [batch(), batch()], loss) if scored else None
    if found:
        for heads, neurons in zip(found.heads, found.neurons, strict=True):
            assert (heads == 0).nonzero().flatten().tolist() == dead
            assert (neurons == 0).nonzero().flatten().tolist() == sorted(NEURONS)
    shape = Student(layers=2, heads=8 - len(dead), intermediate_size=64)
    made: Any = student.make(shape, teacher, auto(), 0, importance=found).eval()
    assert student.shape_of(made.config)["key_value_heads"] == shared
    same(made, teacher)
    made.save_pretrained(tmp_path)
    same(auto().from_pretrained(tmp_path), teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_units_that_are_always_zero_leave_the_rest_as_it_was(kind: str, tmp_path: Path) -> None:
    """The mean of squares is over fewer units then, and the norms' weights make up for it; all cuts at once."""
    teacher = teacher_of(kind)
    kill(teacher, [0, 1, 2, 3], NEURONS, UNITS)
    found = pruning.importance(teacher, [batch()], loss)
    assert (found.hidden == 0).nonzero().flatten().tolist() == sorted(UNITS)
    assert len(found.energy) == 2 * 2 + 1 and all((one[UNITS] == 0).all() for one in found.energy.values())
    shape = Student(layers=2, hidden_size=48, heads=4, intermediate_size=64)
    made: Any = student.make(shape, teacher, auto(), 0, importance=found).eval()
    assert sum(p.numel() for p in made.parameters()) < 0.6 * sum(p.numel() for p in teacher.parameters())
    same(made, teacher)
    made.save_pretrained(tmp_path)
    same(auto().from_pretrained(tmp_path), teacher)


def test_scores_do_not_depend_on_padding() -> None:
    teacher, padded = teacher_of("qwen3"), {name: value[:1] for name, value in batch().items()}
    short = {name: value[:, :5] for name, value in padded.items()}
    one, other = (pruning.importance(teacher, [inputs], loss) for inputs in (short, padded))
    torch.testing.assert_close(one.hidden, other.hidden)
    for name, energy in one.energy.items():
        torch.testing.assert_close(energy, other.energy[name])


def test_a_narrower_width_without_scores_starts_anew() -> None:
    """Heads stay as wide as the source says, whatever the width."""
    teacher = teacher_of("qwen3", head_dim=24)
    made: Any = student.make(Student(layers=1, hidden_size=40), teacher, auto(), 0)
    assert (made.config.head_dim, made.config.num_key_value_heads, made.config.hidden_size) == (24, 2, 40)
    assert torch.isfinite(made(**batch()).logits).all() and made.lm_head.weight is made.model.embed_tokens.weight


def test_shapes_that_cannot_be_are_refused() -> None:
    teacher = teacher_of("llama")
    with pytest.raises(BadInput, match=r"multiple of 4 .* or of 2"):
        student.make(Student(layers=1, heads=5), teacher, auto(), 0)
    with pytest.raises(BadInput, match="not a multiple of the number of attention heads"):
        student.make(Student(layers=1, heads=6), teacher, auto(), 0)
    with pytest.raises(BadInput, match="its source has 64"):
        student.make(Student(layers=1, hidden_size=72), teacher, auto(), 0)
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    with pytest.raises(BadInput, match="intermediate_size"):
        student.make(Student(heads=1), gpt2, auto(), 0)
    gemma = model_of("gemma", 60)
    with pytest.raises(BadInput, match="cannot be pruned"):  # of the same names, but its norms add one to the weight
        student.make(Student(layers=1, heads=2), gemma, auto(), 0)
