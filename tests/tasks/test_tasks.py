"""Every built-in task keeps the contract: its names, logits that torch.export traces, outputs that ignore padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, CLIPConfig, MarianConfig, ViTConfig

from edgekd import registry
from edgekd.tasks import _parts
from edgekd.tasks._contract import Task

VOCABULARY, LENGTH = 50, 9
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "eos_token_id": VOCABULARY - 1}


@pytest.fixture(params=registry.names("tasks"))
def task(request: pytest.FixtureRequest) -> Any:
    return registry.load("tasks", request.param)


@pytest.fixture(
    params=[
        {"task": name, **({"part": part} if part else {})}
        for name in registry.names("tasks")
        for part in _parts.names(registry.load("tasks", name)) or [""]
    ],
    ids=lambda one: "-".join(one.values()),
)
def exported(request: pytest.FixtureRequest) -> Any:
    """A task as its artefact sees it: one of its parts, where it has such."""
    return _parts.of(registry.load("tasks", request.param["task"]), request.param)


class Program(torch.nn.Module):
    """A tiny model behind the task's signature."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        from edgekd.teach.transformers import model_class

        torch.manual_seed(0)
        shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = (
            ViTConfig(image_size=8, patch_size=4, num_labels=5, **shape)
            if "pixel_values" in task.INPUTS
            else BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, num_labels=2, **shape)
        )
        if isinstance(task, _parts.Part):
            from edgekd.teach import dual

            towers = {"vision_config": {"image_size": 8, "patch_size": 4, **shape}, "text_config": TEXT | shape}
            config = CLIPConfig(**towers, projection_dim=6)
            self.task, self.model = task, dual.tower(dual.CLIPModel.from_config(config), task.name).eval()
            return
        if "decoder_input_ids" in task.INPUTS:
            halves = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
            sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in halves.items()}
            config = MarianConfig(vocab_size=VOCABULARY, d_model=8, pad_token_id=0, max_position_embeddings=32, **sizes)
        self.task, self.model = task, model_class(task.AUTO_TASK).from_config(config).eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.task.INPUTS, inputs, strict=True))
        return self.task.logits(self.model(**named), named)


def inputs_of(task: Any, rows: int, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    made = {
        "input_ids": torch.randint(1, VOCABULARY, (rows, length)),
        "decoder_input_ids": torch.randint(1, VOCABULARY, (rows, length)),
        "attention_mask": torch.ones(rows, length, dtype=torch.long),
        "token_type_ids": torch.zeros(rows, length, dtype=torch.long),
        "pixel_values": torch.randn(rows, 3, 8, 8),
    }
    return tuple(made[name] for name in task.INPUTS)


def test_a_task_has_the_names_of_the_contract(task: Any) -> None:
    names = {*Task.__annotations__, *(name for name in vars(Task) if not name.startswith("_"))}
    assert not [name for name in names if not hasattr(task, name)]
    assert not {*task.LIST_COLUMNS, *task.FILE_COLUMNS} - {*task.COLUMNS, *task.OPTIONAL_COLUMNS}


def test_logits_export_with_any_batch_and_length(exported: Any) -> None:
    task, program = exported, Program(exported)
    batch, sequence = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("sequence", min=2, max=32)
    dynamic = {0: batch} if "pixel_values" in task.INPUTS else {0: batch, 1: sequence}
    inputs = inputs_of(task, 4)
    made = torch.export.export(program, inputs, dynamic_shapes=((dynamic,) * len(inputs),))
    for one in (inputs, inputs_of(task, 3, 5)):
        logits = made.module()(*one)
        assert logits.dim() == (3 if task.PER_UNIT else 2) and len(logits) == len(one[0])
        torch.testing.assert_close(logits, program(*one))


def test_padding_does_not_change_what_is_taken(exported: Any) -> None:
    task = exported
    if "input_ids" not in task.INPUTS:
        pytest.skip("images are not padded")
    program = Program(task)
    inputs = inputs_of(task, 1)
    padded = tuple(torch.cat((one, torch.zeros(1, 4, dtype=torch.long)), 1) for one in inputs)
    ids = inputs[0][0].tolist()
    encoded = {
        "units": [0, 3, 5],
        "unit_ends": [0, 4, 8],
        "input_ids": ids,
        "learn": [0, 1, 1, 1, *[0] * (len(ids) - 4)],
        "labels": ids[:3],
    }
    with torch.inference_mode():
        alone, among = task.take(program(*inputs)[0], encoded), task.take(program(*padded)[0], encoded)
    torch.testing.assert_close(alone, among)
    assert alone.shape[0] == (3 if task.PER_UNIT else alone.numel())


def test_equal_outputs_agree_and_stack_into_finite_rows(task: Any) -> None:
    numbers = np.random.default_rng(0)
    shape = (4, 3) if task.PER_UNIT else (6,)
    outputs = [numbers.normal(size=shape) for _ in range(2 * task.GROUP)]
    assert task.agree(outputs, [one.copy() for one in outputs]).tolist() == [1.0] * len(outputs)
    stacked = task.stack([torch.tensor(one) for one in outputs])
    assert stacked.dim() == 2 and stacked.isfinite().all()
