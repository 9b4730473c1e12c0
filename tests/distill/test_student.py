"""Students: what is copied or cut out of the teacher, what a folder remembers, what shapes are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ResNetConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edgekd.distill import pruning, student
from edgekd.errors import BadInput
from edgekd.quantize import reference
from edgekd.quantize.scheme import SCHEMES
from edgekd.recipe import Student
from edgekd.teach.transformers import load_teacher

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VIT = ViTConfig(**{k: v for k, v in SIZES.items() if k != "vocab_size"}, image_size=16, patch_size=8)
ELECTRA = ElectraConfig(**SIZES, embedding_size=12)
KINDS = [
    (ViTForImageClassification, VIT, "vit.layers"),
    (ElectraForSequenceClassification, ELECTRA, "electra.encoder.layer"),
    (BertForSequenceClassification, BertConfig(**SIZES), "bert.encoder.layer"),
    (RobertaForSequenceClassification, RobertaConfig(**SIZES), "roberta.encoder.layer"),
    (
        DistilBertForSequenceClassification,
        DistilBertConfig(vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=32),
        "distilbert.transformer.layer",
    ),
]


def auto(model: nn.Module) -> type:
    """The Auto class of a model."""
    image = isinstance(model, ViTForImageClassification)
    return AutoModelForImageClassification if image else AutoModelForSequenceClassification


def text(*, count: int = 3, length: int = 7, vocabulary: int = 60) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    ids = torch.randint(4, vocabulary, (count, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def inputs_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.ones(2, 3, 16, 16)} if isinstance(model, ViTForImageClassification) else text()


def loud(model: nn.Module) -> nn.Module:
    """Weights large enough for every part to show in the output."""
    torch.manual_seed(6)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(("kind", "config", "path"), KINDS, ids=[k.__name__ for k, _, _ in KINDS])
def test_layers_embeddings_and_head_come_from_the_teacher(kind, config, path) -> None:  # type: ignore[no-untyped-def]
    teacher = kind(config).eval()
    made = student.make(Student(layers=2), teacher, auto(teacher), seed=0)
    mine, theirs = made.state_dict(), teacher.state_dict()
    copied = {name for name in mine if path not in name}
    assert all(torch.equal(mine[name], theirs[name]) for name in copied)
    for name in mine:
        if name.startswith(f"{path}.1."):
            assert torch.equal(mine[name], theirs[name.replace(f"{path}.1.", f"{path}.3.")]), name
    assert mine[next(iter(mine))].data_ptr() != theirs[next(iter(mine))].data_ptr()


def test_a_full_size_student_is_the_teacher() -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    made = student.make(Student(layers=4), teacher, AutoModelForSequenceClassification, seed=0).eval()
    ids = torch.randint(0, 60, (3, 7))
    torch.testing.assert_close(made(input_ids=ids).logits, teacher(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("of", "count", "how", "expected"),
    [
        (6, 3, "uniform", [0, 2, 5]),
        (6, 2, "uniform", [0, 5]),
        (6, 1, "uniform", [5]),
        (6, 2, "first", [0, 1]),
        (6, 2, "last", [4, 5]),
    ],
)
def test_which_layers_are_taken(of: int, count: int, how: str, expected: list[int]) -> None:
    assert student.taken(of, count, how) == expected


def test_a_narrower_embedding_is_the_principal_components() -> None:
    from sklearn.decomposition import PCA

    table = np.random.default_rng(0).normal(size=(200, 12)) @ np.diag(np.linspace(3, 0.1, 12))
    found = student.reduce_embedding(torch.tensor(table).float(), 4).numpy()
    expected = PCA(n_components=4).fit_transform(table)
    for mine, theirs in zip(found.T, expected.T, strict=True):
        assert abs(np.corrcoef(mine, theirs)[0, 1]) == pytest.approx(1.0, abs=1e-4)
    assert found.std() == pytest.approx(student.EMBEDDING_STD, rel=1e-2)


def test_the_seed_decides_what_is_fresh() -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES))
    shape = Student(layers=2, hidden_size=8)
    one, two, other = (
        student.make(shape, teacher, AutoModelForSequenceClassification, seed=s).state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_layers_are_taken_as_listed() -> None:
    teacher = loud(BertForSequenceClassification(BertConfig(**SIZES)))
    made = student.make(Student(take=[3, 1]), teacher, AutoModelForSequenceClassification, 0)
    theirs, mine = teacher.bert.encoder.layer, made.bert.encoder.layer
    assert len(mine) == made.config.num_hidden_layers == 2
    for index, layer in ((0, 3), (1, 1)):
        assert torch.equal(mine[index].output.dense.weight, theirs[layer].output.dense.weight)


@pytest.mark.parametrize(("kind", "config", "path"), KINDS[1:], ids=[k.__name__ for k, _, _ in KINDS[1:]])
def test_a_trimmed_vocabulary_answers_as_the_teacher(kind, config, path) -> None:  # type: ignore[no-untyped-def]
    teacher = loud(kind(config))
    kept = [0, 1, 2, *range(3, 60, 2)]
    made = student.make(Student(layers=4), teacher, auto(teacher), 0, kept=kept, max_positions=7).eval()
    new = text(vocabulary=len(kept))
    old = {**new, "input_ids": torch.tensor(kept)[new["input_ids"]]}
    torch.testing.assert_close(made(**new).logits, teacher(**old).logits)
    assert made.config.vocab_size == made.get_input_embeddings().num_embeddings == len(kept)
    positions = next(m for n, m in made.named_modules() if n.endswith("position_embeddings"))
    offset = 2 if kind is RobertaForSequenceClassification else 0
    assert positions.num_embeddings == made.config.max_position_embeddings == 7 + offset


def test_token_ids_of_the_configuration_follow_the_vocabulary() -> None:
    """RoBERTa counts positions from its padding's id, so its table moves with it."""
    teacher = loud(
        RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=5, bos_token_id=7, eos_token_id=6))
    )
    kept = [5, 7, *range(10, 60)]
    made = student.make(Student(layers=4), teacher, AutoModelForSequenceClassification, 0, kept=kept).eval()
    config = made.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, None)
    new = text(vocabulary=len(kept))
    new["input_ids"][0, 4:] = 0
    new["attention_mask"][0, 4:] = 0
    old = {**new, "input_ids": torch.tensor(kept)[new["input_ids"]]}
    torch.testing.assert_close(made(**new).logits, teacher(**old).logits)


def test_more_positions_than_the_teacher_has_change_nothing() -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=30))
    made = student.make(Student(layers=1), teacher, AutoModelForSequenceClassification, 0, max_positions=64)
    assert made.config.max_position_embeddings == 30


def test_a_factorised_table_is_the_nearest_of_its_rank() -> None:
    teacher = loud(BertForSequenceClassification(BertConfig(**SIZES)))
    table = teacher.get_input_embeddings().weight.detach()
    for rank in (4, 15):
        made = student.make(Student(layers=1, embedding_size=rank), teacher, AutoModelForSequenceClassification, 0)
        low = made.get_input_embeddings()
        assert low.words.weight.shape == (60, rank)
        error = float((low(torch.arange(60)) - table).detach().norm())
        singular = torch.linalg.svdvals(table - table.mean(0))
        assert error == pytest.approx(float(singular[rank:].norm()), rel=1e-4)  # Eckart-Young


@pytest.mark.parametrize(
    "shape",
    [
        Student(layers=2, embedding_size=5),
        Student(layers=2, heads=1, intermediate_size=10),
        Student(layers=2, hidden_size=8, embedding_size=5, intermediate_size=12),
        Student(layers=2),
    ],
    ids=["factorised", "one head of two", "narrow", "layers only"],
)
@pytest.mark.parametrize(("kind", "config", "path"), KINDS, ids=[k.__name__ for k, _, _ in KINDS])
def test_a_folder_gives_the_student_back(kind, config, path, shape: Student, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    teacher = loud(kind(config))
    if kind is ViTForImageClassification:
        shape = shape.model_copy(update={"embedding_size": None})
    made = student.make(shape, teacher, auto(teacher), 0).eval()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    student.save(made, tmp_path / "tokenizer", tmp_path / "model")
    again = student.load(tmp_path / "model", auto(teacher)).eval()
    inputs = inputs_of(made)
    assert torch.equal(made(**inputs).logits, again(**inputs).logits)
    assert student.shape_of(again.config) == student.shape_of(made.config)
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    if student._is_marked(made.config):  # transformers alone would start it from random weights
        auto_task = "image-classification" if kind is ViTForImageClassification else "text-classification"
        with pytest.raises(BadInput, match="cannot be a teacher"):
            load_teacher(SimpleNamespace(model=str(tmp_path / "model"), revision=None), auto_task)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize("shape", [Student(layers=1, embedding_size=5), Student(layers=1, heads=1)])
def test_changed_modules_quantize_and_export(shape: Student) -> None:
    teacher = loud(BertForSequenceClassification(BertConfig(**SIZES)))
    made = student.make(shape, teacher, AutoModelForSequenceClassification, 0).eval()
    inputs = text()
    expected = made(**inputs).logits
    program = torch.export.export(made, (), kwargs=inputs)
    torch.testing.assert_close(program.module()(**inputs).logits, expected)
    prepared = reference.prepare(made)
    for quantizer in reference.quantizers(prepared):
        quantizer.set_range(-30.0, 30.0)
    reference.share_inputs(prepared, inputs)
    trained = prepared(**inputs).logits
    torch.testing.assert_close(reference.convert(prepared)(**inputs).logits, trained, atol=1e-4, rtol=0)
    left = [name for name, module in prepared.named_modules() if type(module) is nn.Linear]
    assert not left


def pairs(kind, config, width: int) -> nn.Module:  # type: ignore[no-untyped-def]
    """A teacher whose units i and i + width always agree, and of which only the first are read.

    Both halves have the same mean and variance, so its LayerNorms give the same where the second half is cut away.
    """
    teacher = loud(kind(config))
    layers, roles = pruning.encoder(teacher)
    path = next(n for n, m in teacher.named_modules() if m is layers)
    with torch.no_grad():
        for name, value in teacher.named_parameters():
            rest = name.removeprefix(path + ".").partition(".")[2] if name.startswith(path) else ""
            for axis, size in enumerate(value.shape):
                if size == 2 * width and (not rest or roles.axes(rest)[axis] == "hidden"):
                    first, second = value.split(width, axis)
                    reads = axis == 1 and value.ndim == 2 and "embeddings." not in name
                    second.copy_(torch.zeros_like(first) if reads else first)
    return teacher


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (kind, config)
        for kind, config, _ in KINDS
        if kind in (BertForSequenceClassification, DistilBertForSequenceClassification, ViTForImageClassification)
    ],
    ids=["ViT", "BERT", "DistilBERT"],
)
def test_cutting_the_width_keeps_what_the_important_units_say(kind, config) -> None:  # type: ignore[no-untyped-def]
    teacher = pairs(kind, config, 8)
    order = torch.cat([torch.ones(8), torch.zeros(8)])
    scores = pruning.Importance(order, (torch.ones(2),) * 4, (torch.ones(32),) * 4)
    made = student.make(Student(layers=4, hidden_size=8), teacher, auto(teacher), 0, importance=scores).eval()
    inputs = inputs_of(teacher)
    torch.testing.assert_close(made(**inputs).logits, teacher(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert student.shape_of(made.config)["hidden_size"] == 8
    assert student.shape_of(made.config)["heads"] == 2  # of the teacher's size


@pytest.mark.parametrize("config", [ELECTRA, ElectraConfig(**SIZES, embedding_size=16)], ids=["12", "16"])
def test_electra_keeps_or_cuts_its_own_embedding_width(config: ElectraConfig) -> None:
    teacher = loud(ElectraForSequenceClassification(config))
    scores = pruning.Importance(torch.arange(16.0), (torch.ones(2),) * 4, (torch.ones(32),) * 4)
    made = student.make(Student(layers=2, hidden_size=8), teacher, auto(teacher), 0, importance=scores)
    theirs = teacher.get_input_embeddings().weight
    expected = theirs if config.embedding_size == 12 else theirs[:, 8:]
    assert torch.equal(made.get_input_embeddings().weight, expected)
    assert torch.isfinite(made(**text()).logits).all()


def test_fresh_weights_of_a_narrow_student_let_signals_pass() -> None:
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 512}
    teacher = BertForSequenceClassification(BertConfig(**sizes))
    made = student.make(Student(layers=1, hidden_size=64), teacher, AutoModelForSequenceClassification, 0)
    layer = made.bert.encoder.layer[0]
    for linear in (layer.attention.self.query, layer.intermediate.dense, layer.output.dense, made.bert.pooler.dense):
        assert float(linear.weight.std()) == pytest.approx(0.6 / linear.in_features**0.5, rel=0.05)
        assert not linear.bias.any()
    assert torch.equal(made.classifier.bias, teacher.classifier.bias)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (Student(hidden_size=32), "hidden_size is 32, its source has 16"),
        (Student(intermediate_size=64), "intermediate_size is 64, its source has 32"),
        (Student(heads=4), "heads is 4, its source has 2"),
        (Student(hidden_size=9), "2 heads do not divide hidden_size 9"),
        (Student(layers=5), "layers is 5, its source has 4"),
        (Student(take=[0, 4]), "layers 0 to 3"),
        (Student(take=[]), "layers 0 to 3"),
        (Student(layers=3, take=[0, 1]), "layers is 3, but take lists 2"),
        (Student(embedding_size=16), "embedding_size is 16, the word table has 16"),
    ],
)
def test_shapes_that_cannot_be(shape: Student, said: str) -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES))
    with pytest.raises(BadInput, match=said):
        student.make(shape, teacher, AutoModelForSequenceClassification, 0)


def test_models_that_cannot_be_cut() -> None:
    vit = ViTForImageClassification(VIT)
    with pytest.raises(BadInput, match="embedding_size"):
        student.make(Student(embedding_size=4), vit, AutoModelForImageClassification, 0)
    resnet = AutoModelForImageClassification.from_config(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(BadInput, match="no num_hidden_layers"):
        student.make(Student(), resnet, AutoModelForImageClassification, 0)


def test_another_model_can_be_the_source(tmp_path: Path) -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES))
    config = BertConfig(**{**SIZES, "vocab_size": 80, "num_hidden_layers": 3, "num_labels": 5})
    other = loud(BertForSequenceClassification(config))
    other.save_pretrained(tmp_path)
    whole = student.make(Student(model=str(tmp_path)), teacher, AutoModelForSequenceClassification, 0)
    assert student.shape_of(whole.config) == {**student.shape_of(other.config), "layers": 3}
    assert whole.config.id2label == teacher.config.id2label
    assert torch.equal(whole.get_input_embeddings().weight, other.get_input_embeddings().weight)
    cut = student.make(
        Student(model=str(tmp_path), layers=1, embedding_size=4), teacher, AutoModelForSequenceClassification, 0
    )
    assert student.shape_of(cut.config)["embedding_size"] == 4
    assert torch.equal(cut.bert.encoder.layer[0].output.dense.weight, other.bert.encoder.layer[2].output.dense.weight)


def test_an_earlier_student_can_be_the_source(tmp_path: Path) -> None:
    teacher = loud(BertForSequenceClassification(BertConfig(**SIZES)))
    first = student.make(Student(heads=1, embedding_size=5), teacher, AutoModelForSequenceClassification, 0).eval()
    first.save_pretrained(tmp_path)
    shape = Student(model=str(tmp_path))
    again = student.make(shape, teacher, AutoModelForSequenceClassification, 0).eval()
    torch.testing.assert_close(again(**text()).logits, first(**text()).logits)
    with pytest.raises(BadInput, match="2 labels, the teacher's 5"):
        other = BertForSequenceClassification(BertConfig(**SIZES, num_labels=5))
        student.make(shape, other, AutoModelForSequenceClassification, 0)


def test_the_tokenizer_of_another_model_is_copied(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    student.copy_tokenizer(str(tiny.folder / "teacher"), tmp_path / "copy")
    old, new = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (tiny.folder / "teacher", tmp_path / "copy"))
    assert new.encode("please tell me about steel").ids == old.encode("please tell me about steel").ids
    assert new.padding is None
    assert new.truncation is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="tokenizer cannot be loaded"):
        student.copy_tokenizer(str(tmp_path / "empty"), tmp_path / "copy")


def test_the_summary_counts_what_a_student_costs() -> None:
    teacher = BertForSequenceClassification(BertConfig(**SIZES, max_position_embeddings=20))
    made = student.make(Student(layers=3, embedding_size=4), teacher, AutoModelForSequenceClassification, 0)
    found = student.summary(made, SCHEMES.values(), tokens=10)
    h, i, layers, rank, tokens = 16, 32, 3, 4, 10
    tables = 60 * rank + 20 * h + 2 * h
    linears = [(rank, h), *[(h, h), (h, h), (h, h), (h, h), (h, i), (i, h)] * layers, (h, h), (h, 2)]
    norms = 2 * h * (1 + 2 * layers)
    weights, outputs = sum(a * b for a, b in linears), sum(b for _, b in linears)
    assert found["parameters"] == tables + weights + outputs + norms
    assert found["embedding_parameters"] == tables
    assert found["size_bytes"]["fp32"] == 4 * found["parameters"]
    assert found["size_bytes"]["w8a8"] == tables + 4 * (60 + 20 + 2) + weights + 8 * outputs + 4 * norms
    per_token = rank * h + layers * (4 * h * h + 2 * h * i + 2 * tokens * h)
    assert found["flops"] == 2 * (tokens * per_token + h * h + h * 2)


def test_the_summary_of_an_image_model_is_of_one_image() -> None:
    found = student.summary(ViTForImageClassification(VIT), [], tokens=1)
    patches, h, i = 4, 16, 32
    per_token = 4 * h * h + 2 * h * i + 2 * (patches + 1) * h
    assert found["flops"] == 2 * (patches * 3 * 64 * h + (patches + 1) * 4 * per_token + h * 2)


def test_dropout_is_the_teachers_unless_the_recipe_says_so(tiny) -> None:  # type: ignore[no-untyped-def]
    teacher = AutoModelForSequenceClassification.from_pretrained(tiny.folder / "teacher", dtype=torch.float32)
    plain = student.make(Student(layers=1), teacher, AutoModelForSequenceClassification, 0)
    without = student.make(Student(layers=1, dropout=0.0), teacher, AutoModelForSequenceClassification, 0)
    assert plain.config.hidden_dropout_prob == teacher.config.hidden_dropout_prob > 0
    assert without.config.hidden_dropout_prob == without.config.attention_probs_dropout_prob == 0
    assert all(module.p == 0 for module in without.modules() if isinstance(module, torch.nn.Dropout))
