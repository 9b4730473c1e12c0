"""The student: the teacher's kind of network, smaller, started from the teacher where shapes allow.

Layers are taken whole. Narrower feed-forward parts and fewer heads are cut out of the teacher's, the least important
left behind. A narrower width is cut out too where importance scores are given; without them it starts from the
principal components of the teacher's word table and fresh layers. The vocabulary, the positions and the rank of the
word table shrink by themselves.

Layer taking works on any transformers encoder whose layers lie in one ModuleList; cutting on the families of
``pruning.FAMILIES``. Of a dual encoder both towers lose layers alike, and the projections into their common space stay.
It refuses shapes that cannot be, and students larger than their source.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from edgekd.distill import pruning
from edgekd.errors import BadInput
from edgekd.recipe import Student
from edgekd.tasks import _parts
from edgekd.teach import dual

EMBEDDING_STD = 0.05  # scale of a reduced embedding table; a LayerNorm follows it
NARROW = 256  # below this width transformers' fresh weights (std 0.02) are too small for signals to pass
FRESH_GAIN = 0.6  # their std is then this over sqrt(fan in)
RANK, HEAD_SIZE = "edgekd_embedding_size", "edgekd_head_size"  # what a configuration says of modules we changed
FOLLOWERS = ("embedding_size", "pooler_output_size")  # fields that follow the width where they equal it
NAMES = {
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": ("hidden_size", "dim"),
    "heads": ("num_attention_heads", "n_heads"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
}


class FactorizedEmbedding(nn.Module):
    """A word table of low rank: ids [...] -> [..., width] through a [vocabulary, rank] table and a projection."""

    def __init__(self, vocabulary: int, rank: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, rank)
        self.up = nn.Linear(rank, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.up(self.words(ids))


def make(
    shape: Student,
    teacher: nn.Module,
    model_class: Any,
    seed: int,
    *,
    kept: Sequence[int] | None = None,
    importance: pruning.Importance | None = None,
    max_positions: int | None = None,
) -> nn.Module:
    """The student of the asked shape, in float32; the teacher is not changed and shares no tensor with it.

    ``kept[new] = old``: the token ids of a trimmed vocabulary. ``importance``: scores of the teacher's parts (see
    ``pruning.importance``). ``max_positions``: the longest input, in tokens; a learned position table is cut to it.
    With ``shape.model`` that model is the source of everything instead of the teacher, and the caller answers for
    its tokenizer. Raises BadInput for shapes that cannot be.
    """
    torch.manual_seed(seed)
    source = teacher if shape.model is None else _from_model(shape.model, teacher, model_class)
    if dual.configs(source.config):
        return _dual(shape, source, kept, max_positions)
    return _made(shape, source, model_class, kept, importance, max_positions)


def _dual(shape: Student, source: Any, kept: Sequence[int] | None, max_positions: int | None) -> nn.Module:
    """A dual encoder whose towers are made alike; what lies behind them is the source's."""
    _parts.check_shape(shape)
    student = copy.deepcopy(source).requires_grad_(True)
    for part, kept_ids in (("vision", None), ("text", kept)):
        tower = getattr(source, f"{part}_model")
        fresh = SimpleNamespace(from_config=type(tower)._from_config)
        made = _made(shape, tower, fresh, kept_ids, None, max_positions)
        setattr(student, f"{part}_model", made)
        setattr(student.config, f"{part}_config", made.config)
    if source.config.text_config.eos_token_id == dual.LEGACY_END:  # it names no token: ids keep their order
        student.config.text_config.eos_token_id = student.text_model.eos_token_id = dual.LEGACY_END
    return student


def _made(
    shape: Student,
    source: Any,
    model_class: Any,
    kept: Sequence[int] | None,
    importance: pruning.Importance | None,
    max_positions: int | None,
) -> nn.Module:
    own = {name: read(source.config, name) for name in NAMES}
    layers = _layers_to_take(shape, own["layers"])
    plan = _plan(shape, source, own, layers, importance)
    config = copy.deepcopy(source.config)
    for name, value in {"layers": len(layers), **plan.sizes}.items():
        write(config, name, value)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    for name in FOLLOWERS:
        if getattr(config, name, None) == own["hidden_size"]:
            setattr(config, name, plan.sizes["hidden_size"])
    for name in DROPOUTS if shape.dropout is not None else ():
        if hasattr(config, name):
            setattr(config, name, shape.dropout)
    _mark_heads(config, plan)
    rows = _rows(source, config, kept, max_positions)
    student = _build(config, model_class)
    _start_from(student, source, layers, plan, rows)
    if shape.embedding_size is not None:
        _factorize(student, shape.embedding_size)
    if getattr(source, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(source.generation_config)
    return student


def read(config: Any, name: str) -> int:
    """A size of the configuration under edgekd's name for it."""
    return int(getattr(config, _field(config, name)))


def write(config: Any, name: str, value: int) -> None:
    """Set a size of the configuration by edgekd's name for it."""
    setattr(config, _field(config, name), value)


def shape_of(config: Any) -> dict[str, int]:
    """layers, hidden_size, heads, intermediate_size; vocab_size and embedding_size where there are such.

    Of a dual encoder all of them for each tower: ``image_layers``, ...
    """
    towers = dual.configs(config)
    if towers:
        return {f"{part}_{name}": size for part, one in towers.items() for name, size in shape_of(one).items()}
    extra = {"vocab_size": "vocab_size", "embedding_size": RANK}
    found = {name: int(getattr(config, field)) for name, field in extra.items() if getattr(config, field, None)}
    return {name: read(config, name) for name in NAMES} | found


def taken(of: int, count: int, how: str) -> list[int]:
    """Which ``count`` of the teacher's ``of`` layers the student starts from; uniform keeps the first and the last."""
    if how == "first":
        return list(range(count))
    if how == "last" or count == 1:
        return list(range(of - count, of))
    return [round(i * (of - 1) / (count - 1)) for i in range(count)]


def reduce_embedding(table_VH: torch.Tensor, width: int) -> torch.Tensor:
    """The table's ``width`` principal components, scaled to EMBEDDING_STD: the [V, width] table of most variance."""
    reduced_VK, _, _ = _principal(table_VH, width)
    return (reduced_VK * (EMBEDDING_STD / reduced_VK.std())).float()


def save(student: nn.Module, tokenizer: Path, out: Path) -> None:
    """Write a transformers folder: safetensors, configuration, and the tokenizer's files."""
    out.mkdir(parents=True, exist_ok=True)
    student.save_pretrained(out)
    for file in sorted(tokenizer.iterdir()):
        shutil.copy2(file, out / file.name)


def load(folder: Path | str, model_class: Any) -> nn.Module:
    """A model that ``save`` wrote, or any other from a folder or the hub, in float32.

    transformers alone does not know a factorised word table or heads of another width; the configuration says so
    (``edgekd_embedding_size``, ``edgekd_head_size``) and they are rebuilt here.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    config = AutoConfig.from_pretrained(str(folder))
    if not _is_marked(config):
        return model_class.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    model = _build(config, model_class)
    load_model(model, str(cached_file(str(folder), "model.safetensors")))
    return model.eval()


def copy_tokenizer(name: str, out: Path) -> None:
    """Write the tokenizer (or image processor) of a model folder or hub id to ``out``; it neither pads nor cuts."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name)
    except Exception as error:
        raise BadInput(
            f"its tokenizer cannot be loaded ({_first(error)})",
            where=name,
            todo="Put tokenizer.json (or preprocessor_config.json) beside the student's model.",
        ) from None
    tokenizer = getattr(processor, "tokenizer", processor)
    for one in (tokenizer, getattr(processor, "image_processor", tokenizer)):
        one.save_pretrained(out)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
        backend.save(str(out / "tokenizer.json"))


class Precision(Protocol):
    """What ``summary`` reads of a scheme."""

    @property
    def name(self) -> str: ...
    @property
    def weight_bits(self) -> int: ...
    @property
    def embedding_bits(self) -> int: ...


def summary(model: Any, schemes: Iterable[Precision], tokens: int) -> dict[str, Any]:
    """What a model costs, known before it is trained.

    ``parameters``; ``embedding_parameters`` in lookup tables; ``size_bytes`` by scheme name, an estimate of the numbers
    in the file: linear weights and tables at the scheme's bits, 8 bytes more per quantized output channel (scale and
    bias), 4 per quantized table row (scale), 4 per other parameter; graph and metadata are not in it. ``flops``: two
    per multiply-accumulate of the matrix products and convolutions of one forward pass, counted on a real pass over
    one text of ``tokens`` tokens (an image model takes one image, whatever ``tokens`` is; a dual encoder one of both).
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tied = {id(table.weight) for table in tables}
    linears = [one for one in model.modules() if isinstance(one, nn.Linear) and id(one.weight) not in tied]
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(linear.weight.numel() for linear in linears)
    biases = sum(linear.bias.numel() for linear in linears if linear.bias is not None)
    channels = sum(linear.out_features for linear in linears)
    entries, rows = sum(table.weight.numel() for table in tables), sum(table.num_embeddings for table in tables)

    def size(scheme: Precision) -> int:
        total = 4 * parameters
        if scheme.weight_bits < 32:
            total += weights * scheme.weight_bits // 8 + 8 * channels - 4 * (weights + biases)
        if scheme.embedding_bits < 32:
            total += entries * scheme.embedding_bits // 8 + 4 * rows - 4 * entries
        return total

    return {
        "parameters": parameters,
        "embedding_parameters": entries,
        "size_bytes": {scheme.name: size(scheme) for scheme in schemes},
        "flops": _flops(model, tokens),
    }


def _flops(model: Any, tokens: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    towers = dual.configs(model.config)
    inputs: dict[str, torch.Tensor] = {}
    if towers or model.main_input_name == "pixel_values":
        config = towers.get("image", model.config)
        sides = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
        inputs = {"pixel_values": torch.zeros(1, config.num_channels, *sides)}
    if towers or not inputs:
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    training, attention = model.training, model.config._attn_implementation
    model.eval().set_attn_implementation("eager")  # the counter knows no fused attention on a CPU
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        model.train(training).set_attn_implementation(attention)
    return counter.get_total_flops()


DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "qa_dropout",
)


@dataclass(frozen=True)
class Plan:
    """The student's sizes, and what of its source it keeps; None keeps everything.

    ``hidden`` [H'] indices; per student layer ``heads`` [h'] and ``neurons`` [I'] indices. ``fresh``: a width that is
    not cut out, so that the layers start anew.
    """

    sizes: dict[str, int]
    fresh: bool
    head_size: int | None = None
    hidden: torch.Tensor | None = None
    heads: list[torch.Tensor] | None = None
    neurons: list[torch.Tensor] | None = None


def _plan(
    shape: Student,
    source: nn.Module,
    own: dict[str, int],
    layers: list[int],
    importance: pruning.Importance | None,
) -> Plan:
    sizes = {name: getattr(shape, name) or own[name] for name in ("hidden_size", "heads", "intermediate_size")}
    hidden, heads, neurons = sizes.values()
    fresh = hidden != own["hidden_size"] and importance is None
    if (fresh or heads > own["heads"]) and hidden % heads:
        raise BadInput(
            f"distill.student: {heads} heads do not divide hidden_size {hidden}", todo="Choose heads that divide it."
        )
    for name, value in sizes.items():
        if value > own[name] and (name == "hidden_size" or not fresh):
            raise BadInput(
                f"distill.student.{name} is {value}, its source has {own[name]}",
                todo="Take at most that much, or set distill.student.model.",
            )
    if fresh or sizes == {name: own[name] for name in sizes}:
        return Plan(sizes, fresh)
    found, roles = pruning.encoder(source)
    best = pruning.best
    head_scores = [importance.heads[i] if importance else pruning.head_norms(found[i], roles) for i in layers]
    neuron_scores = [importance.neurons[i] if importance else pruning.neuron_norms(found[i], roles) for i in layers]
    return Plan(
        sizes,
        fresh,
        head_size=pruning.head_shape(found[0], roles)[1],
        hidden=best(importance.hidden, hidden) if importance and hidden < own["hidden_size"] else None,
        heads=[best(scores, heads) for scores in head_scores] if heads < own["heads"] else None,
        neurons=[best(scores, neurons) for scores in neuron_scores] if neurons < own["intermediate_size"] else None,
    )


def _layers_to_take(shape: Student, of: int) -> list[int]:
    """Source layers in the student's order; all of another model's by default, half of a teacher's."""
    if isinstance(shape.take, list):
        if not shape.take or not all(0 <= layer < of for layer in shape.take):
            raise BadInput(f"distill.student.take is {shape.take}, the source has layers 0 to {of - 1}")
        if shape.layers not in (None, len(shape.take)):
            raise BadInput(f"distill.student.layers is {shape.layers}, but take lists {len(shape.take)}")
        return list(shape.take)
    count = shape.layers or (of if shape.model is not None else max(1, of // 2))
    if count > of:
        raise BadInput(
            f"distill.student.layers is {count}, its source has {of}",
            todo="Take at most the source's layers, or set distill.student.model.",
        )
    return taken(of, count, shape.take)


def _field(config: Any, name: str) -> str:
    for field in NAMES[name]:
        if hasattr(config, field):
            return field
    raise BadInput(
        f"a {type(config).__name__} has no {NAMES[name][0]}, so no student can be cut out of it",
        todo="Set distill.student.model to a small model.",
    )


def _from_model(name: str, teacher: Any, model_class: Any) -> nn.Module:
    from transformers import AutoConfig

    labels = {} if teacher is None else {"id2label": teacher.config.id2label, "label2id": teacher.config.label2id}
    try:
        config = AutoConfig.from_pretrained(name)
        if teacher is not None and dual.configs(teacher.config) and not dual.configs(config):
            raise BadInput(
                f"is a {config.model_type} model, not CLIP", where=name, todo="Give a model with two towers."
            )
        if not _is_marked(config):
            return model_class.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, **labels
            )
        model = load(name, model_class)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInput(
            f"the student cannot be loaded ({_first(error)})", where=name, todo="Check distill.student.model."
        ) from None

    if teacher is not None and model.config.num_labels != teacher.config.num_labels:
        raise BadInput(
            f"its head has {model.config.num_labels} labels, the teacher's {teacher.config.num_labels}",
            where=name,
            todo="Start from a student of the same task.",
        )
    return model


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_marked(config: Any) -> bool:
    return any(getattr(config, name, None) for name in (RANK, HEAD_SIZE))


def _mark_heads(config: Any, plan: Plan) -> None:
    """Say in the configuration how wide a head is, where it is not the width over the number of heads."""
    if plan.head_size is None and not plan.fresh:
        return
    field = "head_dim" if config.model_type == "vit" else HEAD_SIZE  # a ViT's own configuration knows it
    if plan.head_size is not None and plan.head_size * plan.sizes["heads"] != plan.sizes["hidden_size"]:
        setattr(config, field, plan.head_size)
    elif hasattr(config, field):
        delattr(config, field)


def _build(config: Any, model_class: Any) -> nn.Module:
    """A model with fresh weights, in float32, with the modules that the configuration's marks ask for."""
    config, heads, size = copy.deepcopy(config), read(config, "heads"), getattr(config, HEAD_SIZE, None)
    if size:
        write(config, "heads", 1)  # transformers refuses heads that do not divide the width
    model = model_class.from_config(config).float()
    if size:
        layers, roles = pruning.encoder(model)
        for layer in layers:
            pruning.set_heads(layer, roles, heads, size)
        write(model.config, "heads", heads)
    rank = getattr(config, RANK, None)
    if rank:
        table = model.get_input_embeddings()
        model.set_input_embeddings(FactorizedEmbedding(table.num_embeddings, rank, table.embedding_dim))
    return model


def _rows(source: Any, config: Any, kept: Sequence[int] | None, max_positions: int | None) -> dict[str, torch.Tensor]:
    """Rows that tables keep, by parameter name; writes the new sizes and token ids to ``config``."""
    rows: dict[str, torch.Tensor] = {}
    pad = getattr(config, "pad_token_id", None)
    if kept is not None:
        rows[_name(source, _words(source))] = torch.tensor(kept)
        new = {old: id for id, old in enumerate(kept)}
        config.vocab_size = len(kept)
        for field, value in list(config.to_dict().items()):
            if field.endswith("_token_id") and isinstance(value, int):
                setattr(config, field, new.get(value))
    tables = {n: m for n, m in source.named_modules() if n.endswith("position_embeddings") and type(m) is nn.Embedding}
    for name, table in tables.items():
        behind = table.padding_idx is not None  # RoBERTa counts positions from behind the padding's id
        first = config.pad_token_id + 1 if behind else 0
        shift = pad - config.pad_token_id if behind else 0
        size = table.num_embeddings - shift
        if max_positions is not None:
            size = min(size, max_positions + first)
        rows[f"{name}.weight"] = torch.arange(shift, shift + size)
        config.max_position_embeddings = size
    return rows


def _words(model: Any) -> nn.Embedding:
    table = model.get_input_embeddings()
    table = table.words if isinstance(table, FactorizedEmbedding) else table
    if not isinstance(table, nn.Embedding):
        raise BadInput(f"a {type(model).__name__} has no word table", where="distill.student")
    return table


def _name(model: nn.Module, table: nn.Embedding) -> str:
    return next(name for name, value in model.named_parameters() if value is table.weight)


def _layer_path(model: nn.Module, count: int) -> str:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name
    raise BadInput(f"no list of {count} layers found in {type(model).__name__}")


def _start_from(student: nn.Module, source: Any, layers: list[int], plan: Plan, rows: dict[str, torch.Tensor]) -> None:
    """Fill the student with what it keeps of its source; what fits nowhere stays fresh."""
    path = _layer_path(source, read(source.config, "layers")) + "."
    theirs = {name: value.detach().float() for name, value in source.state_dict().items()}
    words = _name(source, _words(source)) if "vocab_size" in source.config.to_dict() else None
    roles = None if plan.head_size is None else pruning.encoder(source)[1]
    state, fresh = student.state_dict(), set()
    for name, mine in state.items():
        if name.startswith(path):
            index, _, rest = name.removeprefix(path).partition(".")
            found = None if plan.fresh else theirs.get(f"{path}{layers[int(index)]}.{rest}")
            if found is not None and roles is not None:
                found = _cut_layer(found, roles.axes(rest), plan, int(index))
        else:
            found = theirs.get(name)
            if found is not None and name in rows:
                found = found[rows[name]]
            if found is not None and plan.hidden is not None:
                for axis, (a, b) in enumerate(zip(found.shape, mine.shape, strict=True)):
                    found = found if a == b else found.index_select(axis, plan.hidden)
            if found is not None and name == words and found.shape[1] > mine.shape[1]:
                found = reduce_embedding(found, mine.shape[1])
        if found is not None and found.shape == mine.shape:
            state[name] = found.clone()
        else:
            fresh.add(name)
    student.load_state_dict(state)
    if plan.fresh and plan.sizes["hidden_size"] < NARROW:
        for name, module in student.named_modules():
            if isinstance(module, nn.Linear) and f"{name}.weight" in fresh:
                nn.init.normal_(module.weight, std=FRESH_GAIN / module.in_features**0.5)


def _cut_layer(tensor: torch.Tensor, axes: tuple[str, str], plan: Plan, layer: int) -> torch.Tensor:
    assert plan.head_size is not None
    keep = {
        "hidden": plan.hidden,
        "heads": None if plan.heads is None else pruning.spread(plan.heads[layer], plan.head_size),
        "neurons": None if plan.neurons is None else plan.neurons[layer],
    }
    for axis in range(tensor.ndim):
        indices = keep[axes[axis]]
        tensor = tensor if indices is None else tensor.index_select(axis, indices)
    return tensor


def _principal(table_VH: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores [V, width], directions [width, H] and mean [H] of a table's principal components, in float64.

    Signs are fixed (largest component of each direction positive) so that the result does not depend on the
    linear algebra library's choice.
    """
    table_VH = table_VH.double()
    mean_H = table_VH.mean(0)
    centred_VH = table_VH - mean_H
    _, _, directions_HH = torch.linalg.svd(centred_VH.T @ centred_VH)
    kept_KH = directions_HH[:width]
    kept_KH = kept_KH * kept_KH.gather(1, kept_KH.abs().argmax(1, keepdim=True)).sign()
    return centred_VH @ kept_KH.T, kept_KH, mean_H


def _factorize(student: Any, rank: int) -> None:
    """Replace the word table by the low-rank one nearest to it; its mean becomes the projection's bias."""
    table = student.get_input_embeddings()
    if not isinstance(table, nn.Embedding) or rank >= table.embedding_dim:
        width = table.embedding_dim if isinstance(table, nn.Embedding) else "no rank to lower"
        raise BadInput(
            f"distill.student.embedding_size is {rank}, the word table has {width}",
            todo="Choose a smaller one, or leave it out.",
        )
    low = FactorizedEmbedding(table.num_embeddings, rank, table.embedding_dim)
    scores_VK, directions_KH, mean_H = _principal(table.weight.detach(), rank)
    with torch.no_grad():
        low.words.weight.copy_(scores_VK)
        low.up.weight.copy_(directions_KH.T)
        low.up.bias.copy_(mean_H)
    student.set_input_embeddings(low)
    setattr(student.config, RANK, rank)
