"""The quantize stage of students that write text: transformers folder -> generative Program.

The Program is a transformers folder whose float32 weights are the shipped ones, integer * scale, beside the integers
and scales themselves: whatever runs it with plain float arithmetic runs what the artefacts hold. Its scales have eight
significant bits and lie in fp16's normal range, so bfloat16, float16 and float32 hold them exactly, and with them the
block format of every runtime. A scale moves by at most 2**-8 of itself for that: half a step at the end of int8.

Word table and head are int8 by row in every quantized scheme: int4 rows would cost accuracy where they save least, and
a tied head must have the table's numbers. ``prepare`` and ``convert`` are apart, so that training may come between.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from edgekd import processes, registry
from edgekd.artifact import SCRATCH, Facts, Inputs, write_json
from edgekd.data.stage import TRANSFER, read_split
from edgekd.distill import student as students
from edgekd.distill import tokens as distilled
from edgekd.distill.stage import source_of
from edgekd.distill.vocabulary import new_ids
from edgekd.errors import BadInput
from edgekd.outputs import save_outputs
from edgekd.quantize import qat, qat_tokens, reference, weights
from edgekd.quantize import scheme as schemes
from edgekd.quantize.scheme import LAYERS, Scheme
from edgekd.recipe import Recipe
from edgekd.teach import transformers, writing
from edgekd.teach.answers import has_answers, read_answers

MODEL, NUMBERS, GOLDEN, REFERENCE = "model", "numbers.safetensors", "golden.json", "reference.safetensors"
NUMBERS_SCHEMA, GOLDEN_SCHEMA = "edgekd/numbers/1", "edgekd/golden-tokens/1"
LEAST_SCALE, LARGEST_SCALE = 2.0**-14, 65280.0  # fp16's smallest normal number, and its largest of eight bits
PROMPTS, SHORTEST, LONGEST, WRITTEN, WITH_LOGITS = 20, 8, 16, 32, 3

Numbers = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name -> integers int8 [O, I], scales float32 [O, G]


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write the generative Program (see docs/architecture.md) to ``out``. Variant: scheme."""
    task: Any = registry.load("tasks", recipe.task)
    data, folder, limit = inputs["data"], inputs["distill"].path / MODEL, recipe.data.max_length
    student = load_student(folder)
    processor = task.processor(folder)
    name = inputs.variant["scheme"]
    scheme = schemes.generative(name, None if name == "fp32" else recipe.quantize)
    rows_of_test = read_split(data.path, "test")
    test = task.encode(processor, rows_of_test, limit)
    facts: Facts = {"method": "none", "chosen_step": 0, "trace": []}
    if name == "fp32":
        model, numbers, layers = quantized(student, scheme, "absmax", [], task)
    else:
        model, facts = trained(recipe, inputs, task, student, scheme, out / SCRATCH)
        model, numbers, layers = convert(model)
    if processes.rank() > 0:
        return {}
    save(model, numbers, layers, scheme.name, folder, out)
    asked = sources(test) if model.config.is_encoder_decoder else prompts(test)
    reference_answers = golden(model, asked)
    write_json(out / GOLDEN, reference_answers)
    answers = transformers.arrays(transformers.predict(model, task, test, 0, size=transformers.at_once(model, limit)))
    save_outputs(out / REFERENCE, answers)
    reached = [value for one in reference_answers["logits"] for value in one]
    return {
        "scheme": scheme.name,
        **facts,
        "layers": layers,
        "metrics": {"test": task.metrics(answers, rows_of_test)},
        "max_length": limit,
        "vocabulary": tokens_of(folder),
        "logit_range": max(reached) - min(reached),
    }


def trained(
    recipe: Recipe, inputs: Inputs, task: Any, student: nn.Module, scheme: Scheme, scratch: Path
) -> tuple[nn.Module, Facts]:
    """The student prepared for ``scheme``, its weights chosen and trained, and how it came about.

    Checkpoints lie in ``scratch``.
    """
    settings, data, folder = recipe.quantize, inputs["data"], inputs["distill"].path / MODEL
    processor, vocabulary = task.processor(folder), min(tokens_of(folder), student.config.vocab_size)

    def encode(rows: Sequence[Any]) -> list[Any]:
        found: list[Any] = task.encode(processor, rows, recipe.data.max_length)
        return found

    train = writing.taught(inputs["teach"].path, data.path, "train")
    count = min(settings.calibration_samples, len(train))
    model = prepare(copy.deepcopy(student), scheme)
    some = encode(random.Random(recipe.seed).sample(train, count))
    chosen = choose(model, student, scheme, settings.weights, some, task)
    model.requires_grad_(True).to(transformers.device())
    student.to(transformers.device())
    judge = partial(
        qat_tokens.compared,
        student=student,
        task=task,
        encoded=encode(read_split(data.path, "validation")),
        vocabulary=vocabulary,
        size=transformers.at_once(student, recipe.data.max_length),
    )
    trace: list[Facts] = []
    if settings.method in ("ptq", "auto") or not settings.steps:
        trace = [{"step": 0, **judge(model)}]
    limit = recipe.gate.max_perplexity_rise.get(scheme.name)
    if not trace or (settings.method == "auto" and limit is not None and trace[0]["perplexity_rise"] > limit):
        trace = qat_tokens.train(
            model,
            student,
            _rows(recipe, inputs, task, train, encode, vocabulary),
            settings,
            temperature=recipe.distill.temperature,
            seed=recipe.seed,
            scratch=scratch,
            judge=judge,
            progress=inputs.progress,
        )
    step = qat.chosen(trace)
    method = "ptq" if not step else "qat" if settings.method == "qat" else "qad"
    calibration = {"samples": count, "seed": recipe.seed, "weights": settings.weights, "layers": chosen}
    student.cpu()
    return model.cpu(), {"method": method, "chosen_step": step, "trace": trace, "calibration": calibration}


def _rows(
    recipe: Recipe,
    inputs: Inputs,
    task: Any,
    train: list[Any],
    encode: Callable[[Sequence[Any]], list[Any]],
    vocabulary: int,
) -> distilled.TokenRows:
    """What distillation trained on: texts, or a teacher's answers to them; with its distributions where they count."""
    data, teach, settings, folder = inputs["data"], inputs["teach"], recipe.quantize, inputs["distill"].path / MODEL
    splits = {"train": train} | {
        name: rows for name in TRANSFER if (rows := writing.taught(teach.path, data.path, name))
    }
    answered, texts = has_answers(teach.path), [row for rows in splits.values() for row in rows]
    encoded = encode(read_answers(teach.path) if answered else texts)
    compared: dict[str, Any] = {}
    if settings.method != "qat" and settings.teacher_weight > 0 and not answered:
        # As in distillation: a trimmed student has other ids, and may cut some rows differently.
        teacher = transformers.load_teacher(recipe.teacher, task.AUTO_TASK) if recipe.teach.online else None
        theirs = task.encode(task.processor(data.path / "tokenizer"), texts, recipe.data.max_length)
        ids = new_ids(data.path / "tokenizer", folder)
        same = distilled.alike(encoded, theirs, ids)
        compared = {
            "source": source_of(recipe, task, data, teach, list(splits), teacher, []),
            "aligned": None if all(same) else torch.tensor(same),
            "vocabulary": data.facts["vocabulary"],
            "ids": None if ids is None else torch.tensor(ids),
        }
    return distilled.TokenRows(
        task,
        encoded,
        targets=(),
        pad_token_id=inputs["distill"].facts["pad_token_id"],
        kept=recipe.teach.tokens,
        packing=recipe.data.max_length if recipe.distill.packing else 0,
        **{"vocabulary": vocabulary, **compared},
    )


def load_student(folder: Path) -> nn.Module:
    """The float32 language model in ``folder``, in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    paired = AutoConfig.from_pretrained(folder).is_encoder_decoder
    model: nn.Module = students.load(folder, AutoModelForSeq2SeqLM if paired else AutoModelForCausalLM)
    return model.eval().requires_grad_(False)


def tokens_of(folder: Path) -> int:
    """Rows of the tokenizer (a model's table may have more)."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size())


# The numbers.


def grid_scale(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` (positive, float32) on the grid of this module: eight significant bits, a normal number in fp16.

    Its products with int8 are exact: there are 15 bits.
    """
    mantissa, exponent = torch.frexp(scale.float())
    return torch.ldexp((mantissa * 2**8).round(), exponent - 8).clamp(LEAST_SCALE, LARGEST_SCALE)


def row_numbers(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 integers as float32 [O, I], and the scales of their rows [O, 1]."""
    scale_O = grid_scale(reference.weight_scale(weight_OI))
    return reference.quantize_weight(weight_OI, scale_O), scale_O[:, None]


class TokenLinear(reference.QATLinear):
    """A linear layer in training, with the numbers it will ship. Scales of int4 groups stay, int8 ones follow."""

    any_scale = False  # they lie on a grid, and what a library chose for others would be rounded again

    def numbers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers as float32 [O, I], scales [O, G]."""
        if self.kind.group:
            return reference.quantize_groups(self.weight, self.w_scale), self.w_scale
        return row_numbers(self.weight)

    def _dequantized(self) -> torch.Tensor:
        return reference.dequantized(*self.numbers())


class TokenTable(nn.Embedding):
    """A word table in training, int8 by row."""

    def numbers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers as float32 [V, H], scales [V, 1]."""
        return row_numbers(self.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = super().forward(ids)  # only the rows in use are rounded: the same, cheaper
        shipped = reference.dequantized(*row_numbers(rows.detach().flatten(0, -2)))
        found: torch.Tensor = reference.StraightThrough.apply(rows, shipped.reshape_as(rows))
        return found


class DynamicLinear(nn.Linear):
    """A shipped linear layer whose inputs are int8 with a scale for each token, chosen as it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, zero = reference.token_numbers(x)
        return F.linear((reference.quantize_tokens(x, steps, zero) - zero) * (1 / steps), self.weight, self.bias)


def prepare(model: nn.Module, scheme: Scheme) -> nn.Module:
    """Swap linear layers and the word table for their classes in training, in place; the head is never under 8 bits."""
    if scheme.name == "fp32":
        return model
    table, head = ends(model)
    words = {table.weight}
    if model.config.is_encoder_decoder:  # each half has a table of its own, or they share one matrix
        words.add(model.get_decoder().get_input_embeddings().weight)
    width = getattr(model.config, "hidden_size", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.weight in words:
            module.__class__ = TokenTable
        elif type(module) is nn.Linear:
            kind = scheme.layer(name, module.in_features, module.out_features, width)
            tied = module is head and module.weight in words
            if module is head and (kind.weight_bits < 8 or (tied and kind.weight_bits > 8)):
                kind = LAYERS["w8"]
            if kind.weight_bits == 32:
                continue
            module.__class__ = TokenLinear
            module.kind = kind
            if kind.group:
                scale = reference.group_scale(module.weight, kind.group)
                module.register_buffer("w_scale", grid_scale(scale))
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def ends(model: nn.Module) -> tuple[nn.Embedding, nn.Module | None]:
    """The word table and the head of a language model; raises BadInput where the table is no plain one."""
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding) or getattr(table, "embed_scale", 1.0) != 1.0:
        raise BadInput(
            f"the word table is a {type(table).__name__}, which cannot be quantized for generation",
            where="distill.student",
            todo="Leave embedding_size out (or, of a BART, take one without scale_embedding).",
        )
    return table, model.get_output_embeddings()


def choose(
    model: nn.Module, student: nn.Module, scheme: Scheme, how: str, rows: Sequence[Any], task: Any
) -> dict[str, int]:
    """Choose the int4 weights of ``model`` (prepared) by ``quantize.weights``, and put their scales on the grid.

    Returns how many layers were chosen in each way.
    """
    chosen = weights.choose(model, student, scheme, how, rows, task, 0)
    for _, layer in reference.layers(model):
        if layer.kind.group:
            layer.w_scale.copy_(grid_scale(layer.w_scale))
    return chosen


def convert(model: nn.Module) -> tuple[nn.Module, Numbers, list[Facts]]:
    """The prepared model with its shipped weights in plain layers (in place), its numbers, and what the manifest says.

    A tied head has the table's numbers; they are not repeated, nor are those of tables that share a matrix.
    """
    first: dict[torch.Tensor, str] = {}
    numbers: Numbers = {}
    layers: list[Facts] = []
    for name, module in model.named_modules():
        if not isinstance(module, TokenLinear | TokenTable):
            continue
        kind = module.kind if isinstance(module, TokenLinear) else LAYERS["w8"]
        facts: Facts = {"name": name, "kind": kind.name, "bits": kind.weight_bits, "group": kind.group}
        if module.weight in first:
            layers.append(facts | {"tied": first[module.weight]})
        else:
            first[module.weight] = name
            weight_q, scale_OG = module.numbers()
            numbers[name] = weight_q.to(torch.int8), scale_OG.clone()
            module.weight.data = reference.dequantized(weight_q, scale_OG)
            layers.append(facts)
        if isinstance(module, TokenLinear):
            if kind.group:
                del module.w_scale
            module.__class__ = DynamicLinear if kind.activations == "dynamic" else nn.Linear
        else:
            module.__class__ = nn.Embedding
    return model.eval().requires_grad_(False), numbers, layers


def quantized(
    student: nn.Module, scheme: Scheme, how: str, rows: Sequence[Any], task: Any
) -> tuple[nn.Module, Numbers, list[Facts]]:
    """A copy of ``student`` with the weights that ``scheme`` ships, its numbers, and its layers for the manifest."""
    model = prepare(copy.deepcopy(student), scheme)
    choose(model, student, scheme, how, rows, task)
    return convert(model)


# The Program.


def save(model: nn.Module, numbers: Numbers, layers: list[Facts], scheme: str, source: Path, out: Path) -> None:
    """Write ``model/`` (with the tokenizer's files of the folder ``source``) and ``numbers.safetensors``."""
    model.save_pretrained(out / MODEL, max_shard_size="1TB")  # one file: every reader knows that
    for file in sorted(source.iterdir()):
        if file.suffix not in (".safetensors", ".bin") and not (out / MODEL / file.name).exists():
            shutil.copy2(file, out / MODEL / file.name)
    tensors = {}
    for name, (weight_q, scale_OG) in numbers.items():
        tensors |= {f"{name}.weight": weight_q.contiguous(), f"{name}.scale": scale_OG.contiguous()}
    told = {"schema": NUMBERS_SCHEMA, "scheme": scheme, "layers": json.dumps(layers)}
    save_file(tensors, out / NUMBERS, metadata=told)


def load(program: Path) -> nn.Module:
    """The Program as a transformers model in float32 that computes what its scheme says (int8 tokens included)."""
    model = load_student(program / MODEL)
    with safe_open(program / NUMBERS, "pt") as file:
        layers = json.loads(file.metadata()["layers"])
    for layer in layers:
        if LAYERS[layer["kind"]].activations == "dynamic":
            model.get_submodule(layer["name"]).__class__ = DynamicLinear
    return model


def prompts(encoded: Sequence[Mapping[str, Any]], count: int = PROMPTS) -> list[list[int]]:
    """Up to ``count`` prompts of 8 to 16 tokens: the beginnings of rows, then what follows in them.

    Raises BadInput where no row has 8 tokens.
    """
    rows = [list(row["input_ids"]) for row in encoded]
    longest = max(map(len, rows), default=0)
    found: list[list[int]] = []
    for start in range(0, longest, LONGEST):
        for ids in rows:
            size = min(SHORTEST + len(found) % (LONGEST - SHORTEST + 1), len(ids) - start)
            if size >= SHORTEST and len(found) < count:
                found.append(ids[start : start + size])
    if not found:
        raise BadInput(f"no text of the test split has {SHORTEST} tokens", where="data.test", todo="Give longer texts.")
    return found


def sources(encoded: Sequence[Mapping[str, Any]], count: int = PROMPTS) -> list[list[int]]:
    """Up to ``count`` sources of rows at equal distances: what a model with an encoder is asked."""
    return [list(encoded[i * len(encoded) // count]["input_ids"]) for i in range(min(count, len(encoded)))]


def golden(model: nn.Module, asked: Sequence[Sequence[int]], written: int = WRITTEN) -> Facts:
    """What the model writes greedily after each prompt (an end token does not end it), with the margins to the second.

    ``logits`` are those after the prompt, of the first few.
    """
    tokens, margins, logits = [], [], []
    for prompt in asked:
        line, gaps = [], []
        for logits_V in greedy(model, prompt, written):
            first, second = logits_V.topk(2).values.tolist()
            line.append(int(logits_V.argmax()))
            gaps.append(first - second)
            if len(line) == 1 and len(logits) < WITH_LOGITS:
                logits.append(logits_V.tolist())
        tokens.append(line)
        margins.append(gaps)
    asked = [list(prompt) for prompt in asked]
    return {"schema": GOLDEN_SCHEMA, "prompts": asked, "tokens": tokens, "margins": margins, "logits": logits}


@torch.no_grad()
def greedy(model: nn.Module, prompt: Sequence[int], count: int) -> Iterator[torch.Tensor]:
    """Logits [V] of each of ``count`` tokens, every one the largest's, with the model's own cache.

    A model with an encoder reads the prompt with it, and writes from where its decoder begins.
    """
    ids, cache, name, heard = torch.tensor([list(prompt)]), None, "input_ids", {}
    if model.config.is_encoder_decoder:
        mask = torch.ones_like(ids)
        heard = {"encoder_outputs": model.get_encoder()(input_ids=ids, attention_mask=mask), "attention_mask": mask}
        ids, name = torch.tensor([[model.config.decoder_start_token_id]]), "decoder_input_ids"
    for _ in range(count):
        answer = model(**{name: ids}, **heard, past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        logits_V = answer.logits[0, -1].float()
        yield logits_V
        ids = logits_V.argmax().reshape(1, 1)
