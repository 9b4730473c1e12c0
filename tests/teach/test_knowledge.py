"""Captured knowledge is what transformers itself reports; the oracles are its output_hidden_states and _attentions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from edgekd.errors import BadInput
from edgekd.recipe import Term
from edgekd.teach import cache, knowledge

TEXT = {"vocab_size": 40, "max_position_embeddings": 24, "pad_token_id": 0}
BERT = {**TEXT, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", BERT),
    "roberta": ("RobertaForTokenClassification", BERT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {**TEXT, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24},
    ),
    "electra": ("ElectraForQuestionAnswering", {**BERT, "embedding_size": 8}),
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
        | {"image_size": 8, "patch_size": 4, "num_channels": 1},
    ),
}
IDS = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 8, 5, 6, 11, 3]])
MASK = (IDS != 0).long()


def make(kind: str, attention: str = "sdpa") -> Any:
    name, options = MODELS[kind]
    kind_of = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind_of._from_config(kind_of.config_class(**options), attn_implementation=attention).eval()
    for parameter in model.parameters():  # as made, attention is all but uniform, and any map would pass
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def inputs(kind: str) -> dict[str, torch.Tensor]:
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
    return {"input_ids": IDS, "attention_mask": MASK}


@pytest.mark.parametrize("kind", MODELS)
def test_hidden_states_and_attention_maps_are_transformers_own(kind: str) -> None:
    with torch.no_grad():
        oracle = make(kind, "eager")(**inputs(kind), output_hidden_states=True, output_attentions=True)
        model = make(kind)
        names = [f"hidden:{layer}:{pool}" for layer in range(4) for pool in ("cls", "mean", "tokens")]
        names += [f"attention:{layer}" for layer in (1, 2, 3)]
        with knowledge.capture(model, names) as found:
            model(**inputs(kind))
    assert set(found) == set(names)
    mask = inputs(kind).get("attention_mask", torch.ones(oracle.hidden_states[0].shape[:2]))
    for layer, hidden in enumerate(oracle.hidden_states):
        torch.testing.assert_close(found[f"hidden:{layer}:tokens"], hidden, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[f"hidden:{layer}:cls"], hidden[:, 0], atol=1e-5, rtol=1e-4)
        mean = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])
        torch.testing.assert_close(found[f"hidden:{layer}:mean"], mean, atol=1e-5, rtol=1e-4)
    for layer, attention in enumerate(oracle.attentions, start=1):
        assert attention.std() > 0.05  # it has something to say
        torch.testing.assert_close(found[f"attention:{layer}"], attention, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_queries_keys_and_values_are_the_projections_of_the_layers_input(kind: str) -> None:
    model = make(kind)
    before = "layernorm_before." if kind == "vit" else None
    with knowledge.capture(model, ["hidden:1:tokens", "query:2", "key:2", "value:2"]) as found, torch.no_grad():
        model(**inputs(kind))
    state = {name.split("layer.1.")[-1].split("layers.1.")[-1]: value for name, value in model.state_dict().items()}
    entering = found["hidden:1:tokens"]
    if before:
        entering = torch.nn.functional.layer_norm(
            entering, (16,), state[before + "weight"], state[before + "bias"], 1e-12
        )
    for one in ("query", "key", "value"):
        short = {"distilbert": f"attention.{one[0]}_lin", "vit": f"attention.{one[0]}_proj"}
        place = short.get(kind, f"attention.self.{one}")
        expected = entering @ state[place + ".weight"].T + state[place + ".bias"]
        torch.testing.assert_close(found[f"{one}:2"], expected, atol=1e-5, rtol=1e-4)


def test_attention_maps_of_a_student_in_training_carry_no_dropout_but_a_gradient() -> None:
    student = make("bert").train()
    torch.manual_seed(0)
    with knowledge.capture(student, ["attention:1", "hidden:0:cls", "query:3"]) as found:
        student(**inputs("bert"))
    torch.testing.assert_close(found["attention:1"].sum(-1), torch.ones(2, 4, 6))  # dropout would break the sum
    for value in found.values():
        student.zero_grad()
        value.square().sum().backward(retain_graph=True)
        assert student.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_no_gradient() -> None:
    names = ["hidden:2:mean", "attention:1", "value:3"]

    def gradient(checkpointing: bool) -> torch.Tensor:
        model = make("bert")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with knowledge.capture(model, names) as found:
            model(**inputs("bert"))
        sum(value.square().sum() for value in found.values()).backward()
        return model.bert.embeddings.word_embeddings.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_the_hooks_are_gone_afterwards_also_after_an_error() -> None:
    model = make("bert")
    with pytest.raises(RuntimeError, match="stop"), knowledge.capture(model, ["hidden:0:cls", "attention:1"]):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_padding_and_positional_inputs_change_nothing() -> None:
    model = make("bert")
    names = ["hidden:3:mean", "attention:2"]
    with torch.no_grad(), knowledge.capture(model, names) as found:
        model(IDS, MASK)
        padded = dict(found)
        model(IDS[:1, :4])
    torch.testing.assert_close(found["hidden:3:mean"], padded["hidden:3:mean"][:1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["attention:2"], padded["attention:2"][:1, :, :4, :4], atol=1e-5, rtol=1e-4)


def test_the_cache_keeps_them_to_half_precision(tmp_path: Path) -> None:
    model = make("bert")
    with torch.no_grad(), knowledge.capture(model, ["hidden:3:cls", "query:1"]) as found:
        model(**inputs("bert"))
    ids = [cache.sample_id("who", text) for text in ("a", "b")]
    kept = {"hidden:3:cls": found["hidden:3:cls"], "query:1": [found["query:1"][0, :4], found["query:1"][1]]}
    cache.write_shard(tmp_path, 0, "who", ids, kept)
    store = cache.Cache(tmp_path, "who")
    torch.testing.assert_close(store.read("hidden:3:cls", ids).float(), found["hidden:3:cls"], atol=1e-3, rtol=1e-3)
    for row, expected in zip(store.read("query:1", ids), kept["query:1"], strict=True):
        torch.testing.assert_close(row.float(), expected, atol=1e-3, rtol=1e-3)


def test_what_a_model_cannot_give_is_refused() -> None:
    bert = make("bert")
    for name, reason in [
        ("hidden:4:cls", "has 3 layers"),
        ("hidden:1:max", "is no knowledge"),
        ("logits", "is no knowledge"),
        ("attention:0", "starts at layer 1"),
    ]:
        with pytest.raises(BadInput, match=reason), knowledge.capture(bert, [name]):
            pass
    resnet = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    )
    with pytest.raises(BadInput, match="no stack of equal layers"), knowledge.capture(resnet, ["hidden:1:cls"]):
        pass
    fused = transformers.ModernBertModel(transformers.ModernBertConfig(**BERT, cls_token_id=2, sep_token_id=3))
    with pytest.raises(BadInput, match="no query projection"), knowledge.capture(fused, ["query:1"]):
        pass
    rotary = transformers.EsmModel(transformers.EsmConfig(**BERT, position_embedding_type="rotary", mask_token_id=4))
    with pytest.raises(BadInput, match="softmax"), knowledge.capture(rotary, ["attention:1"]):
        pass


def test_terms_name_what_they_compare() -> None:
    def names(**term: Any) -> list[tuple[str, str]]:
        return knowledge.links(Term(**term), 2, 6)

    assert names(loss="forward-kl") == [("logits", "logits")]
    assert names(loss="hidden-mse", pool="mean") == [("hidden:2:mean", "hidden:6:mean")]
    assert names(loss="hidden-mse", pool="none", layers="uniform") == [
        ("hidden:1:tokens", "hidden:3:tokens"),
        ("hidden:2:tokens", "hidden:6:tokens"),
    ]
    assert names(loss="attention-kl", layers=[(1, 5)]) == [("attention:1", "attention:5")]
    assert names(loss="minilm", of=["query", "value"]) == [("query:2", "query:6"), ("value:2", "value:6")]
    assert names(loss="rkd-angle") == [("hidden:2:cls", "hidden:6:cls")]
    assert names(loss="similarity", pool="output") == [("logits", "logits")]
    for wrong in (
        {"loss": "rkd-distance", "pool": "none"},
        {"loss": "hidden-mse", "pool": "output"},
        {"loss": "hidden-mse", "layers": [(3, 1)]},
        {"loss": "minilm", "layers": [(0, 0)]},
    ):
        with pytest.raises(BadInput):
            names(**wrong)
    with pytest.raises(BadInput, match="no stack"):
        knowledge.links(Term(loss="hidden-mse"), 0, 0)
