"""Image classification: one image in, one of C labels out.

An example carries its image as a file (base64), so that a split is one self-contained text file like any other. The
teacher's image processor decides sizes and normalisation. Refuses what Pillow cannot open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.tasks import _classes, _images
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "image-classification"
HEADLINE = "accuracy"
COLUMNS = ("image", "label")
OPTIONAL_COLUMNS: tuple[str, ...] = ()
TEXT_COLUMNS = ("image",)
LIST_COLUMNS: tuple[str, ...] = ()
FILE_COLUMNS = ("image",)
INPUTS = _images.INPUTS
GROUP = 1
PER_UNIT = False
SOFT = "forward-kl"

processor = _images.processor
encode = _images.encode
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
    _images.pixels(row["image"])
    found = {"image": row["image"]}
    return {**found, "label": _classes.class_id(row["label"], labels)} if "label" in row else found


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """The examples themselves."""
    return list(examples)


def sample_text(example: Example) -> str:
    """The hash of size and pixels: one name for an image, however its file was compressed."""
    return _images.name(example["image"])


group_text = sample_text


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """The classifier's label names; raises BadInput for another kind of model or for contradicting names."""
    return _classes.names(config, asked, "ImageClassification", "an image classifier")


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, C]."""
    return outputs.logits


def take(logits_C: Any, encoded: Encoded) -> Any:
    """The row's logits as they are."""
    return logits_C
