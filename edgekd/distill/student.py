"""The student: the teacher's kind of network, smaller, started from the teacher where shapes allow.

Layers are taken whole. Narrower feed-forward parts and fewer heads are cut out of the teacher's, the least important
left behind. A narrower width is cut out too where importance scores are given; without them it starts from the
principal components of the teacher's word table and fresh layers. The vocabulary, the positions and the rank of the
word table shrink by themselves.

Layer taking works on any transformers model whose layers lie in one ModuleList; cutting on the families of
``pruning.FAMILIES``. It refuses shapes that cannot be, and students larger than their source. A language model of
those families stays what transformers and every runtime knows: its configuration says all of its sizes. Of a dual
encoder both towers lose layers alike, and the projections into their common space stay.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
TOKEN_FIELDS = ("_token_id", "suppress_tokens")  # ends of the names of fields that hold ids
NAMES = {
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden_size": ("hidden_size", "dim"),
    "heads": ("num_attention_heads", "n_heads"),
    "intermediate_size": ("intermediate_size", "hidden_dim", "encoder_ffn_dim", "d_ff"),
}
DECODER = ("decoder_layers", "num_decoder_layers")  # fields for the depth of a decoder beside an encoder


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
    config, layers = configured(shape, source.config, cut=importance is not None)
    plan = _plan(config, source, layers, importance)
    rows = _rows(source, config, kept, max_positions)
    student = _build(config, model_class)
    _start_from(student, source, _stacks(source, layers, _decoder_layers(shape, source.config)), plan, rows)
    if shape.embedding_size is not None:
        _factorize(student, shape.embedding_size)
    if getattr(source, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(source.generation_config)
        if kept is not None:
            _renumber(student.generation_config, kept)
    return student


def configured(shape: Student, source: Any, *, cut: bool) -> tuple[Any, list[int]]:
    """The configuration of a student of this shape, made of its source's, and the layers that it takes.

    ``cut``: a narrower width is cut out of the source, not made anew. Vocabulary and positions are the source's.
    Raises BadInput for shapes that cannot be.
    """
    own = {name: read(source, name) for name in NAMES}
    layers = _layers_to_take(shape, own["layers"])
    sizes = _sizes(shape, own, fresh=_is_fresh(shape, own, cut), speaks=source.model_type in pruning.DECODERS)
    config = copy.deepcopy(source)
    for name, value in {"layers": len(layers), **sizes}.items():
        write(config, name, value)
    if written := _decoder_layers(shape, source):
        setattr(config, _decoder_field(config), len(written))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    for name in FOLLOWERS:
        if getattr(config, name, None) == own["hidden_size"]:
            setattr(config, name, sizes["hidden_size"])
    for name in DROPOUTS if shape.dropout is not None else ():
        if hasattr(config, name):
            setattr(config, name, shape.dropout)
    if any(sizes[name] != own[name] for name in sizes):
        _mark_heads(config, source, fresh=_is_fresh(shape, own, cut))
    return config, layers


def token_ids(model: Any) -> set[int]:
    """Ids that a model's configurations name (ends, padding): no vocabulary may lose them."""
    held = [model.config, getattr(model, "generation_config", None)]
    return {id for one in held if one is not None for ids in _token_fields(one).values() for id in ids}


def read(config: Any, name: str) -> int:
    """A size of the configuration under edgekd's name for it."""
    return int(getattr(config, _field(config, name)))


def write(config: Any, name: str, value: int) -> None:
    """Set a size of the configuration by edgekd's name for it."""
    setattr(config, _field(config, name), value)


def shape_of(config: Any) -> dict[str, int]:
    """layers, hidden_size, heads, intermediate_size; key_value_heads, vocab_size, embedding_size and decoder_layers
    where they are.

    Of a dual encoder all of them for each tower: ``image_layers``, ...
    """
    towers = dual.configs(config)
    if towers:
        return {f"{part}_{name}": size for part, one in towers.items() for name, size in shape_of(one).items()}
    extra = {"key_value_heads": "num_key_value_heads", "vocab_size": "vocab_size", "embedding_size": RANK}
    if config.is_encoder_decoder:
        extra["decoder_layers"] = _decoder_field(config)
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
    bias), 4 per 32 weights of 4 bits (scale), 4 per quantized table row (scale), 4 per other parameter; graph and
    metadata are not in it. A language model's head counts as a table of its own, or once where it is the word table.
    ``flops``: two
    per multiply-accumulate of the matrix products and convolutions of one forward pass, counted on a real pass over
    one text of ``tokens`` tokens (an image model takes one image, whatever ``tokens`` is; a dual encoder one of both).
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tied = {id(table.weight) for table in tables}
    head = model.get_output_embeddings()
    linears = [
        one for one in model.modules() if isinstance(one, nn.Linear) and id(one.weight) not in tied and one is not head
    ]
    apart = [head] if isinstance(head, nn.Linear) and id(head.weight) not in tied else []
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(linear.weight.numel() for linear in linears)
    biases = sum(linear.bias.numel() for linear in linears if linear.bias is not None)
    channels = sum(linear.out_features for linear in linears)
    words = sum(table.weight.numel() for table in tables)
    entries = words + sum(one.weight.numel() for one in apart)
    rows = sum(table.num_embeddings for table in tables) + sum(one.out_features for one in apart)

    def size(scheme: Precision) -> int:
        total = 4 * parameters
        if scheme.weight_bits < 32:
            total += weights * scheme.weight_bits // 8 - 4 * weights
            total += 4 * weights // GROUP if scheme.weight_bits < 8 else 8 * channels - 4 * biases
        if scheme.embedding_bits < 32:
            total += entries * scheme.embedding_bits // 8 + 4 * rows - 4 * entries
        return total

    return {
        "parameters": parameters,
        "embedding_parameters": words,
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
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
    training, attention = model.training, model.config._attn_implementation
    model.eval().set_attn_implementation("eager")  # the counter knows no fused attention on a CPU
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(**inputs)
    finally:
        model.train(training).set_attn_implementation(attention)
    return counter.get_total_flops()


GROUP = 32  # weights of 4 bits that share a scale, as a rule
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
    "qa_dropout",
    "dropout_rate",
)


@dataclass(frozen=True)
class Plan:
    """What the student keeps of its source; None keeps everything.

    ``hidden`` [H'] indices; per student layer ``heads`` [h'] (of queries), ``shared`` (of keys and values) and
    ``neurons`` [I'] indices. ``fresh``: a width that is not cut out, so that the layers start anew. ``norms``: factors
    of the norms' weights by the source's name.
    """

    fresh: bool
    head_size: int | None = None
    hidden: torch.Tensor | None = None
    heads: list[torch.Tensor] | None = None
    shared: list[torch.Tensor] | None = None
    neurons: list[torch.Tensor] | None = None
    norms: Mapping[str, float] = field(default_factory=dict)


def _is_fresh(shape: Student, own: Mapping[str, int], cut: bool) -> bool:
    return (shape.hidden_size or own["hidden_size"]) != own["hidden_size"] and not cut


def _sizes(shape: Student, own: Mapping[str, int], *, fresh: bool, speaks: bool) -> dict[str, int]:
    """The asked sizes but for the layers; ``speaks``: a language model, whose heads are as wide as it says."""
    sizes = {name: getattr(shape, name) or own[name] for name in ("hidden_size", "heads", "intermediate_size")}
    hidden, heads, _ = sizes.values()
    if (fresh or heads > own["heads"]) and hidden % heads and not speaks:
        raise BadInput(
            f"distill.student: {heads} heads do not divide hidden_size {hidden}", todo="Choose heads that divide it."
        )
    for name, value in sizes.items():
        if value > own[name] and (name == "hidden_size" or not fresh):
            raise BadInput(
                f"distill.student.{name} is {value}, its source has {own[name]}",
                todo="Take at most that much, or set distill.student.model.",
            )
    return sizes


def _plan(config: Any, source: nn.Module, layers: list[int], importance: pruning.Importance | None) -> Plan:
    names = ("hidden_size", "heads", "intermediate_size")
    sizes, own = ({name: read(one, name) for name in names} for one in (config, source.config))
    narrower = {name for name in names if sizes[name] < own[name]}
    fresh = sizes["hidden_size"] != own["hidden_size"] and importance is None
    if fresh or sizes == own:
        return Plan(fresh)
    found, roles = pruning.encoder(source)
    size = pruning.head_shape(found[0], roles)[1]
    shared = found[0].get_submodule(roles.value).out_features // size
    head_scores = [importance.heads[i] if importance else pruning.head_norms(found[i], roles) for i in layers]
    neuron_scores = [importance.neurons[i] if importance else pruning.neuron_norms(found[i], roles) for i in layers]
    queries, keys = zip(*(pruning.best_heads(scores, sizes["heads"], shared) for scores in head_scores), strict=True)
    hidden = pruning.best(importance.hidden, sizes["hidden_size"]) if importance and "hidden_size" in narrower else None
    return Plan(
        fresh,
        head_size=size,
        hidden=hidden,
        heads=list(queries) if "heads" in narrower else None,
        shared=list(keys) if "heads" in narrower else None,
        neurons=[pruning.best(scores, sizes["intermediate_size"]) for scores in neuron_scores]
        if "intermediate_size" in narrower
        else None,
        norms={}
        if hidden is None or importance is None
        else {name: pruning.refitted(energy, hidden) for name, energy in importance.energy.items()},
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


def _decoder_layers(shape: Student, config: Any) -> list[int]:
    """Source layers of the student's decoder; none where there is no encoder beside it."""
    if not config.is_encoder_decoder:
        if shape.decoder_layers:
            raise BadInput("its source has no encoder and decoder", where="distill.student.decoder_layers")
        return []
    of = int(getattr(config, _decoder_field(config)))
    count = shape.decoder_layers or (shape.layers and min(shape.layers, of))
    return _layers_to_take(shape.model_copy(update={"layers": count}), of)


def _decoder_field(config: Any) -> str:
    return next(name for name in DECODER if hasattr(config, name))


def _field(config: Any, name: str) -> str:
    for known in NAMES[name]:
        if hasattr(config, known):
            return known
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


def _mark_heads(config: Any, source: Any, *, fresh: bool) -> None:
    """Say in the configuration how wide a head is, where it is not the width over the number of heads."""
    hidden, heads = read(config, "hidden_size"), read(config, "heads")
    if config.model_type in pruning.DECODERS:
        size = getattr(source, "head_dim", None) or read(source, "hidden_size") // read(source, "heads")
        config.num_key_value_heads = pruning.grouped(heads, read(source, "heads"), source.num_key_value_heads)
        if hasattr(config, "head_dim") or size * heads != hidden:
            config.head_dim = size
        _validate(config)
        return
    field = "head_dim" if config.model_type == "vit" else HEAD_SIZE  # a ViT's own configuration knows it
    size = getattr(source, field, None) or read(source, "hidden_size") // read(source, "heads")
    if not fresh and size * heads != hidden:
        setattr(config, field, size)
    elif hasattr(config, field):
        delattr(config, field)


def _validate(config: Any) -> None:
    """Refuse what transformers would not load again."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception as error:  # of its validators, which have no class in common
        told = (str(error.__cause__ or error).strip().splitlines() or [""])[-1].strip()
        raise BadInput(
            f"transformers refuses a {config.model_type} of this shape: {told}",
            where="distill.student",
            todo="Choose other hidden_size and heads.",
        ) from None


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
        head = source.get_output_embeddings()
        if head is not None:  # of a language model
            rows |= {f"{_module(source, head)}.{name}": torch.tensor(kept) for name, _ in head.named_parameters()}
        config.vocab_size = len(kept)
        _renumber(config, kept)
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


def _token_fields(config: Any) -> dict[str, list[int]]:
    """Fields of a configuration that name tokens by their ids."""
    found: dict[str, list[int]] = {}
    for name, value in config.to_dict().items():
        ids = [value] if isinstance(value, int) else value
        if name.endswith(TOKEN_FIELDS) and isinstance(ids, list) and all(isinstance(id, int) for id in ids):
            found[name] = ids
    return found


def _renumber(config: Any, kept: Sequence[int]) -> None:
    """Write the new ids of tokens into a configuration; None where none of them is left."""
    new = {old: id for id, old in enumerate(kept)}
    for name, ids in _token_fields(config).items():
        left = [new[id] for id in ids if id in new]
        setattr(config, name, (left if isinstance(getattr(config, name), list) else left[0]) if left else None)


def _module(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


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


def _stacks(source: Any, layers: list[int], written: list[int]) -> dict[str, list[int]]:
    """Where the layers of the source lie (``encoder.layer.``), and which of them the student takes."""
    count = read(source.config, "layers")
    if not written:
        return {f"{_layer_path(source, count)}.": layers}
    parts = {source.get_encoder(): (count, layers)}
    parts[source.get_decoder()] = (getattr(source.config, _decoder_field(source.config)), written)
    names = {module: name for name, module in source.named_modules()}
    return {f"{names[part]}.{_layer_path(part, of)}.": some for part, (of, some) in parts.items()}


def _start_from(
    student: nn.Module, source: Any, stacks: dict[str, list[int]], plan: Plan, rows: dict[str, torch.Tensor]
) -> None:
    """Fill the student with what it keeps of its source; what fits nowhere stays fresh.

    What only the first layer has (T5's position biases) goes to the student's first, whichever layer that is.
    """
    theirs = {name: value.detach().float() for name, value in source.state_dict().items()}
    words = _name(source, _words(source)) if "vocab_size" in source.config.to_dict() else None
    roles = None if plan.head_size is None else pruning.encoder(source)[1]
    state, fresh = student.state_dict(), set()
    for name, mine in state.items():
        origin, path = name, next((path for path in stacks if name.startswith(path)), None)
        if path is not None:
            index, _, rest = name.removeprefix(path).partition(".")
            origin = f"{path}{stacks[path][int(index)]}.{rest}"
            found = None if plan.fresh else theirs.get(origin, theirs.get(f"{path}0.{rest}"))
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
            state[name] = found * plan.norms.get(origin.removesuffix(".weight"), 1.0)
        else:
            fresh.add(name)
    student.load_state_dict(state)
    if plan.fresh and read(student.config, "hidden_size") < NARROW:
        for name, module in student.named_modules():
            if isinstance(module, nn.Linear) and f"{name}.weight" in fresh:
                nn.init.normal_(module.weight, std=FRESH_GAIN / module.in_features**0.5)


def _cut_layer(tensor: torch.Tensor, axes: tuple[str, str], plan: Plan, layer: int) -> torch.Tensor:
    assert plan.head_size is not None
    keep = {
        "hidden": plan.hidden,
        "heads": None if plan.heads is None else pruning.spread(plan.heads[layer], plan.head_size),
        "shared": None if plan.shared is None else pruning.spread(plan.shared[layer], plan.head_size),
        "same": None,
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
