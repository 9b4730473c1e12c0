"""A small CLIP trained from nothing, for an example without a download: scenes of two handwritten digits.

    python examples/clip_teacher.py digits.npz clip-teacher
    edgekd ship examples/clip.yaml

``digits.npz`` holds ``x_<split>`` (uint8 images of 8 x 8, 0 to 16) and ``y_<split>`` for train and test, as in
examples/digits.yaml. A scene is 16 x 16 with a caption ("a three left of a seven", "a nine above a nine"). There are
200 captions, of which 40 are kept for the test, in other handwriting: no caption of the test was ever trained on.
The folder becomes the teacher (transformers, tokenizer.json, preprocessor_config.json), with the scenes in its data/.
A GPU is used where there is one. Prints the teacher's recall on validation and test; a teacher of your own is better.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edgekd.data.load import read_table
from edgekd.tasks import zero_shot_image_classification as task
from edgekd.teach.transformers import arrays, model_class, pad, predict

DIGITS = "zero one two three four five six seven eight nine".split()
RELATIONS = ("left of", "above")
START, END = "<|startoftext|>", "<|endoftext|>"
LARGEST = math.log(100)  # of the logit scale, as CLIP limits it


def scenes(
    digits: dict[str, Any], split: str, texts: Sequence[str], count: int, seed: int, out: Path, name: str
) -> None:
    """``out/<name>.jsonl`` with ``image`` and ``text``, the captions in turn."""
    chance, rows = np.random.default_rng(seed), []
    by_class = [digits[f"x_{split}"][digits[f"y_{split}"] == number] for number in range(10)]
    (out / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = texts[number % len(texts)]
        words = text.split()
        first, second = (by_class[DIGITS.index(word)] for word in (words[1], words[-1]))
        one, other = (some[chance.integers(len(some))] for some in (first, second))
        canvas, shift = np.zeros((16, 16), np.uint8), chance.integers(0, 9, 2)
        places = ((shift[0], 0), (shift[1], 8)) if "left" in words else ((0, shift[0]), (8, shift[1]))
        for pixels, (row, column) in zip((one, other), places, strict=True):
            canvas[row : row + 8, column : column + 8] = np.minimum(15 * pixels, 240)
        Image.fromarray(canvas).save(out / name / f"{number}.png")
        rows.append({"image": f"{name}/{number}.png", "text": text})
    (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def processors_of(texts: Sequence[str], out: Path) -> int:
    """A byte-level tokenizer of the captions and an image processor, written to ``out``; the number of tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    learns = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, learns)
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 1)]
    )
    names = {"bos_token": START, "eos_token": END, "pad_token": END}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(out)
    sides = {"height": 16, "width": 16}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=sides).save_pretrained(out)
    return made.get_vocab_size()


def clip(vocabulary: int, layers: int, width: int) -> transformers.CLIPModel:
    """Two towers of one shape, heads of 32."""
    shape = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": width // 32,
        "hidden_act": "gelu",
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**shape, **ids, "vocab_size": vocabulary, "max_position_embeddings": 32},
            vision_config={**shape, "image_size": 16, "patch_size": 4},
            projection_dim=64,
        )
    )


def recall(folder: Path, rows: Sequence[Any], encoded: Sequence[Any], device: Any) -> dict[str, float]:
    """The task's metrics of the model in ``folder``."""
    model = model_class(task.AUTO_TASK).from_pretrained(folder).eval().to(device)
    return task.metrics(arrays(predict(model, task, encoded, 1)), rows)


def main() -> None:
    """Make the scenes, train, keep the best, write the folder."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("digits", type=Path)
    parse.add_argument("out", type=Path)
    for name, value in {"steps": 1600, "layers": 4, "width": 96, "batch": 64, "scenes": 6400, "seed": 0}.items():
        parse.add_argument(f"--{name}", type=int, default=value)
    parse.add_argument("--rate", type=float, default=1e-3)
    asked = parse.parse_args()
    with np.load(asked.digits, allow_pickle=False) as kept:
        digits = dict(kept)
    texts = [f"a {one} {how} a {other}" for one in DIGITS for how in RELATIONS for other in DIGITS]
    order = np.random.default_rng(0).permutation(len(texts))
    unseen, seen = [texts[i] for i in order[:40]], [texts[i] for i in order[40:]]
    data = asked.out / "data"
    # Handwriting: the last 300 training digits are the validation's, the test's own are the test's.
    parts = {key: value for key, value in digits.items() if key.endswith("test")}
    parts |= {f"{axis}_train": digits[f"{axis}_train"][:-300] for axis in "xy"}
    parts |= {f"{axis}_validation": digits[f"{axis}_train"][-300:] for axis in "xy"}
    sizes = {"train": asked.scenes, "validation": 640, "test": 800}
    for seed, (name, count) in enumerate(sizes.items()):
        scenes(parts, name, unseen if name == "test" else seen, count, seed, data, name)

    torch.manual_seed(asked.seed)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    net = clip(processors_of(seen, asked.out), asked.layers, asked.width).to(device)
    processor = task.processor(asked.out)
    rows, encoded = {}, {}
    for name in sizes:
        table = read_table(str(data / f"{name}.jsonl"), task.COLUMNS, {}, files=task.FILE_COLUMNS)
        rows[name] = task.expand([task.example(row, []) for row in table], processor, 32)
        encoded[name] = task.encode(processor, rows[name], 32)
    targets = task.targets(rows["train"])[::2]
    decays = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, asked.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min((i + 1) / (0.05 * asked.steps), 0.5 + 0.5 * math.cos(math.pi * min(1.0, i / asked.steps))),
    )
    best, kept_state = -1.0, None
    for step in range(1, asked.steps + 1):
        picked = torch.randint(0, len(targets), (asked.batch,)).tolist()
        inputs = pad([encoded["train"][2 * i + k] for i in picked for k in range(2)], 1, task.INPUTS)
        logits = net(**{name: value.to(device) for name, value in inputs.items()}).logits_per_image
        same = torch.tensor([[targets[i] == targets[j] for j in picked] for i in picked], device=device).float()
        share = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            net.logit_scale.clamp_(max=LARGEST)
        if step % 250 == 0 or step == asked.steps:
            copy.deepcopy(net).cpu().save_pretrained(asked.out)
            found = recall(asked.out, rows["validation"], encoded["validation"], device)
            print(f"step {step}: loss {float(loss.detach()):.3f}, validation {found}", flush=True)  # noqa: T201
            if found["image_to_text"] > best:
                best, kept_state = found["image_to_text"], copy.deepcopy(net.state_dict())
    assert kept_state is not None
    net.load_state_dict(kept_state)
    net.cpu().save_pretrained(asked.out)
    test = recall(asked.out, rows["test"], encoded["test"], device)
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters:,} parameters, validation {best:.3f}, test {test}")  # noqa: T201


if __name__ == "__main__":
    main()
