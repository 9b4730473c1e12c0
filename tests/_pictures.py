"""Pictures with captions, and a tiny CLIP that has not learned anything yet: what dual encoders are tested with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
HALVES = {"top": (0, slice(8)), "bottom": (0, slice(8, 16)), "left": (1, slice(8)), "right": (1, slice(8, 16))}
START, END = "<|startoftext|>", "<|endoftext|>"


def write_pictures(folder: Path, split: str, count: int, seed: int) -> list[str]:
    """``<split>.jsonl`` with ``image`` and ``text``, and the images beside it; returns the texts."""
    from PIL import Image

    chance, rows = np.random.default_rng(seed), []
    for number in range(count):
        colour, place = chance.choice(list(COLOURS)), chance.choice(list(HALVES))
        pixels = chance.integers(0, 60, (16, 16, 3))
        axis, half = HALVES[place]
        pixels.swapaxes(0, axis)[half] = COLOURS[colour]
        name = f"{split}{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        rows.append({"image": name, "text": f"{colour} at the {place}"})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [row["text"] for row in rows]


def write_clip(folder: Path, texts: list[str], *, width: int = 32, **options: Any) -> Any:
    """A CLIPModel of two layers a tower with random weights, its byte-level tokenizer and image processor."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learns = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, learns)
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 1)]
    )
    names = {"bos_token": START, "eos_token": END, "pad_token": END}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    sides = {"height": 16, "width": 16}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=sides).save_pretrained(folder)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": width, "intermediate_size": 2 * width}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**shape, **ids, "vocab_size": made.get_vocab_size(), "max_position_embeddings": 32},
        vision_config={**shape, "image_size": 16, "patch_size": 4},
        **{"projection_dim": 24, **options},
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model
