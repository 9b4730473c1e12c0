"""What the image tasks share: an image as a file in base64, its name, and the processor that makes it pixels.

The processor's PIL implementation runs everywhere and needs no torchvision. Refuses what Pillow cannot open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import BadInput, Environment
from edgekd.tasks._contract import Encoded, Example

INPUTS = ("pixel_values",)
PROCESSOR = "preprocessor_config.json"


def pixels(image: str) -> Any:
    """The decoded image in RGB; raises BadInput for a file that is no image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise Environment("Pillow is not installed", todo="pip install 'edgekd[images]'") from None
    try:
        return Image.open(io.BytesIO(base64.b64decode(image, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise BadInput(f"no image that can be read ({type(error).__name__})") from None


def name(image: str) -> str:
    """The hash of size and pixels: one name for an image, however its file was compressed."""
    found = pixels(image)
    return hashlib.sha256(repr(found.size).encode() + found.tobytes()).hexdigest()


def processor(folder: Path) -> Any:
    """The image processor in ``folder/preprocessor_config.json``, computed with Pillow and numpy."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(str(folder), backend="pil")


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """``pixel_values`` [3, H, W] float32; ``max_length`` means nothing here."""
    found = [processor(pixels(one["image"]), return_tensors="np")["pixel_values"][0] for one in examples]
    return [{"pixel_values": np.asarray(one, np.float32)} for one in found]
