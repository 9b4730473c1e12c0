"""Students that are adapters: a model that stays as it is, and beside its linear layers products of two thin matrices.

The adapters are peft's, put into the model itself, so that it is trained like any other. At the end each is added to
its layer's weights: the student is one model again, which everything behind knows. The adapter is written too, in
peft's own format (``PeftModel.from_pretrained``): what has to be kept, or sent, for each user of one model.

A head that is the task's (a classifier) is trained whole and kept with the adapter; a language model's is not trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from edgekd import processes
from edgekd.artifact import Facts
from edgekd.errors import BadInput, Environment
from edgekd.recipe import Lora

ADAPTER = "adapter"  # the folder
NAME = "default"  # peft's name of an only adapter


def inject(model: Any, asked: Lora, seed: int) -> None:
    """Put adapters that change nothing yet into the model, in place; only they and the task's head are trained then.

    Raises BadInput for names of no linear layer, Environment where peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Environment("peft is not installed", where="distill.lora", todo="pip install 'edgekd[llm]'") from None
    config = LoraConfig(
        r=asked.rank, lora_alpha=asked.alpha, lora_dropout=asked.dropout, target_modules=_targets(model, asked.modules)
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, model, NAME)
    for name in _heads(model):
        model.get_submodule(name).requires_grad_(True)


def merge(model: Any, base: str, out: Path) -> Facts:
    """Write the adapter to ``out`` and add it to the model's weights, in place: no trace of it is left in the model.

    ``base`` is the model that it belongs to. Returns ``parameters`` (that were trained), ``size_bytes``, ``layers``.
    """
    from peft.tuners.lora import LoraLayer

    config = model.peft_config[NAME]
    config.base_model_name_or_path, config.inference_mode, config.modules_to_save = base, True, _heads(model) or None
    adapters = {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}
    kept = {
        f"base_model.model.{name.replace(f'.{NAME}', '')}": one.detach().contiguous()
        for name, one in model.named_parameters()
        if one.requires_grad
    }
    if processes.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(out))
        save_file(kept, str(out / "adapter_model.safetensors"), metadata={"format": "pt"})
    for name, adapter in adapters.items():
        adapter.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapter.get_base_layer())
    model.requires_grad_(True)
    del model.peft_config
    processes.wait()
    return {
        "parameters": sum(one.numel() for one in kept.values()),
        "size_bytes": (out / "adapter_model.safetensors").stat().st_size,
        "layers": len(adapters),
    }


def _targets(model: Any, asked: Literal["linear"] | list[str]) -> list[str]:
    """Whole names of the layers that get an adapter."""
    heads, words = tuple(f"{name}." for name in _heads(model)), model.get_output_embeddings()
    linear = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not words]
    known = [name for name, _ in linear if not f"{name}.".startswith(heads)]
    if asked == "linear":
        return known
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in known})) or "none"
    found = {one: [name for name in known if f".{name}".endswith(f".{one}")] for one in asked}
    lost = next((one for one, names in found.items() if not names), None)
    if lost is not None:
        raise BadInput(f"the student has no linear layer '{lost}'", where="distill.lora", todo=f"It has {kinds}.")
    return [name for names in found.values() for name in names]


def _heads(model: Any) -> list[str]:
    """What stands beside the encoder and is the task's own: not a language model's head."""
    if model.base_model is model:
        return []
    words = model.get_output_embeddings()
    return [
        name
        for name, child in model.named_children()
        if child is not model.base_model and child is not words and any(True for _ in child.parameters())
    ]
