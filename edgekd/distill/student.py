"""The student: the teacher's kind of network, smaller, started from the teacher where shapes allow.

Works on any transformers encoder whose layers lie in one ModuleList (BERT, RoBERTa, DistilBERT, ELECTRA, ...).
What fits is copied; a narrower word-embedding table starts from the principal components of the teacher's;
the rest is fresh. It refuses shapes that cannot be.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from edgekd.errors import BadInput
from edgekd.recipe import Student

EMBEDDING_STD = 0.05  # scale of a reduced embedding table; a LayerNorm follows it
NAMES = {
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": ("hidden_size", "dim"),
    "heads": ("num_attention_heads", "n_heads"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
}


def make(shape: Student, teacher: nn.Module, model_class: Any, seed: int) -> nn.Module:
    """The student of the asked shape, in float32; the teacher is not changed and shares no tensor with it."""
    if shape.model is not None:
        return _from_model(shape.model, teacher, model_class)
    config = copy.deepcopy(teacher.config)
    own = {name: read(teacher.config, name) for name in NAMES}
    asked = {name: getattr(shape, name) for name in NAMES}
    asked["layers"] = asked["layers"] or max(1, own["layers"] // 2)
    for name, value in asked.items():
        if value is not None:
            _write(config, name, value)
    hidden, heads = read(config, "hidden_size"), read(config, "heads")
    if hidden % heads:
        raise BadInput(
            f"distill.student: {heads} heads do not divide hidden_size {hidden}",
            todo="Choose heads that divide it.",
        )
    if read(config, "layers") > own["layers"]:
        raise BadInput(
            f"distill.student.layers is {read(config, 'layers')}, the teacher has {own['layers']}",
            todo="Take at most the teacher's layers, or set distill.student.model.",
        )
    torch.manual_seed(seed)
    student = model_class.from_config(config).float()
    _start_from(student, teacher, taken(own["layers"], read(config, "layers"), shape.take))
    return student


def read(config: Any, name: str) -> int:
    """A size of the configuration under edgekd's name for it."""
    return int(getattr(config, _field(config, name)))


def shape_of(config: Any) -> dict[str, int]:
    """layers, hidden_size, heads, intermediate_size, vocab_size."""
    return {name: read(config, name) for name in NAMES} | {"vocab_size": int(config.vocab_size)}


def taken(of: int, count: int, how: str) -> list[int]:
    """Which ``count`` of the teacher's ``of`` layers the student starts from; uniform keeps the first and the last."""
    if how == "first":
        return list(range(count))
    if how == "last" or count == 1:
        return list(range(of - count, of))
    return [round(i * (of - 1) / (count - 1)) for i in range(count)]


def _field(config: Any, name: str) -> str:
    for field in NAMES[name]:
        if hasattr(config, field):
            return field
    raise BadInput(f"the teacher's configuration ({type(config).__name__}) has no {NAMES[name][0]}")


def _write(config: Any, name: str, value: int) -> None:
    setattr(config, _field(config, name), value)


def _from_model(name: str, teacher: nn.Module, model_class: Any) -> nn.Module:
    labels = {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
    try:
        student = model_class.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, **labels
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise BadInput(
            f"the student cannot be loaded ({first})", where=name, todo="Check distill.student.model."
        ) from None
    if student.config.vocab_size != teacher.config.vocab_size:
        raise BadInput(
            f"its vocabulary has {student.config.vocab_size} entries, the teacher's {teacher.config.vocab_size}",
            where=name,
            todo="For now student and teacher must share the tokenizer.",
        )
    return student


def _layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise BadInput(f"no list of {count} layers found in {type(model).__name__}")


def _start_from(student: nn.Module, teacher: nn.Module, layers: list[int]) -> None:
    path, _ = _layers(student, len(layers))
    source = {name: value.detach() for name, value in teacher.state_dict().items()}
    embedding = student.get_input_embeddings().weight
    words = next(name for name, value in student.named_parameters() if value is embedding)
    state = student.state_dict()
    for name, value in state.items():
        origin = name
        if name.startswith(path + "."):
            index, _, rest = name.removeprefix(path + ".").partition(".")
            origin = f"{path}.{layers[int(index)]}.{rest}"
        found = source.get(origin)
        if found is None:
            continue
        if found.shape == value.shape:
            state[name] = found.clone()
        elif name == words and found.shape[0] == value.shape[0] and found.shape[1] > value.shape[1]:
            state[name] = reduce_embedding(found, value.shape[1])
    student.load_state_dict(state)


def reduce_embedding(table_VH: torch.Tensor, width: int) -> torch.Tensor:
    """The table's ``width`` principal components: the [V, width] table that keeps most of its variance.

    Signs are fixed (largest component of each direction positive) so that the result does not depend on the
    linear algebra library's choice.
    """
    centred_VH = (table_VH - table_VH.mean(0)).double()
    _, _, directions_HH = torch.linalg.svd(centred_VH.T @ centred_VH)
    kept_KH = directions_HH[:width]
    signs_K = kept_KH.gather(1, kept_KH.abs().argmax(1, keepdim=True)).sign()
    reduced_VK = centred_VH @ (kept_KH * signs_K).T
    return (reduced_VK * (EMBEDDING_STD / reduced_VK.std())).float()


def save(student: nn.Module, tokenizer: Path, out: Path) -> None:
    """Write a transformers folder: safetensors, configuration, and the tokenizer's files."""
    import shutil

    out.mkdir(parents=True, exist_ok=True)
    student.save_pretrained(out)
    for file in sorted(tokenizer.iterdir()):
        shutil.copy2(file, out / file.name)
