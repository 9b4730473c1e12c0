"""Image classification: one image in, one of C labels out.

An example carries its image as a file (base64), so that a split is one self-contained text file like any other. The
teacher's image processor decides sizes and normalisation; its PIL implementation runs everywhere and needs no
torchvision. Refuses what Pillow cannot open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import BadInput, Environment
from edgekd.tasks import _classes
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "image-classification"
HEADLINE = "accuracy"
COLUMNS = ("image", "label")
OPTIONAL_COLUMNS: tuple[str, ...] = ()
TEXT_COLUMNS = ("image",)
LIST_COLUMNS: tuple[str, ...] = ()
FILE_COLUMNS = ("image",)
INPUTS = ("pixel_values",)
GROUP = 1
PER_UNIT = False
SOFT = "forward-kl"

stack = _classes.stack
targets = _classes.targets
hard_loss = _classes.cross_entropy
metrics = _classes.metrics
agree = _classes.agree
correct = _classes.correct
answer = _classes.answer


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"image", "label"}``: an image file in base64 (`data.load` reads it), and the label's id.

    Raises BadInput for an unknown label or for a file that is no image.
    """
    _pixels(row["image"])
    found = {"image": row["image"]}
    return {**found, "label": _classes.class_id(row["label"], labels)} if "label" in row else found


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """The examples themselves."""
    return list(examples)


def sample_text(example: Example) -> str:
    """The hash of size and pixels: one name for an image, however its file was compressed."""
    pixels = _pixels(example["image"])
    return hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()


group_text = sample_text


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """The classifier's label names; raises BadInput for another kind of model or for contradicting names."""
    return _classes.names(config, asked, "ImageClassification", "an image classifier")


def processor(folder: Path) -> Any:
    """The image processor in ``folder/preprocessor_config.json``, computed with Pillow and numpy."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(str(folder), backend="pil")


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """``pixel_values`` [3, H, W] float32; ``max_length`` means nothing here."""
    pixels = [processor(_pixels(one["image"]), return_tensors="np")["pixel_values"][0] for one in examples]
    return [{"pixel_values": np.asarray(one, np.float32)} for one in pixels]


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, C]."""
    return outputs.logits


def take(logits_C: Any, encoded: Encoded) -> Any:
    """The row's logits as they are."""
    return logits_C


def _pixels(image: str) -> Any:
    """The decoded image in RGB."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise Environment("Pillow is not installed", todo="pip install 'edgekd[images]'") from None
    try:
        return Image.open(io.BytesIO(base64.b64decode(image, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise BadInput(f"no image that can be read ({type(error).__name__})") from None
