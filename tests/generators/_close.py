"""How far a session's answers are from transformers' on the Program's own weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from edgekd.artifact import read_json
from edgekd.quantize import tokens
from edgekd.verify.tokens import accelerated


def close(writer: Any, session: Any, made: Path, scheme: str) -> None:
    """Logits within the writer's bound in one piece; greedy tokens, one by one, equal up to ties of twice that."""
    model, golden = tokens.load(made), read_json(made / "golden.json")
    for prompt, written, margins in zip(golden["prompts"], golden["tokens"], golden["margins"], strict=True):
        ids = [*prompt, *written]
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        bound = writer.golden_bound(scheme, float(np.ptp(wanted)))
        found = session.score(ids)
        assert found.shape == wanted.shape and found.dtype == np.float32
        assert np.abs(found - wanted).max() <= bound
        session.reset()
        logits = session.feed(prompt)
        for token, margin in zip(written, margins, strict=True):
            if int(logits.argmax()) != token:
                assert margin <= 2 * bound
                break
            logits = session.feed([token])


def integers(writer: Any, artifact: Path, made: Path, wanted: int) -> None:
    """As many layers of int8 tokens as there are, and the runtime multiplies integers in all of them."""
    with safe_open(made / tokens.NUMBERS, "np") as file:
        kernels = accelerated(writer, json.loads(file.metadata()["layers"]), artifact)
    assert kernels["wanted"] == wanted and kernels["accelerated"] is (True if wanted else None)
