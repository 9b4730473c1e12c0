"""Zero-shot image classification: an image goes where its text is nearest, by CLIP (Radford et al., arXiv:2103.00020).

A pair of an image and its text becomes two consecutive rows, one for each tower of the model; batches keep them
together. The output of a row is its embedding, of the length that makes a dot product of an image's and a text's the
model's logit: so the softmax over candidate texts needs no further number, and a cosine is what it always was.

The candidates of an image are the different texts of its split: over captions this is retrieval, over prompts ("a photo
of a cat" beside every cat) it is classification. Each tower becomes an artefact of its own (``PARTS``). Refuses models
other than CLIP: SigLIP pools what stands at the end of the padding, so its embeddings depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import BadInput
from edgekd.tasks import _classes, _images, _text, _vectors
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "zero-shot-image-classification"
HEADLINE = "image_to_text"
COLUMNS = ("image", "text")
OPTIONAL_COLUMNS: tuple[str, ...] = ()
TEXT_COLUMNS = COLUMNS
LIST_COLUMNS: tuple[str, ...] = ()
FILE_COLUMNS = ("image",)
PARTS = {"image": _images.INPUTS, "text": _text.INPUTS}
INPUTS = (*PARTS["image"], *PARTS["text"])
GROUP = 2
PER_UNIT = False
SOFT = "affinity"

stack = _classes.stack
take = _vectors.take
agree = _vectors.agree
answer = _vectors.answer


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"image", "text"}``: an image file in base64 (`data.load` reads it) and what it shows.

    Unlabelled pairs are no different: it is the pairing that is learned. Raises BadInput for a file that is no image
    and for an empty text.
    """
    _images.pixels(row["image"])
    text = row["text"].strip()
    if not text:
        raise BadInput("an image without a text", todo="Give it one, or leave the row out.")
    return {"image": row["image"], "text": text}


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """Two rows per pair, the image's first; both know the image's name."""
    rows: list[Example] = []
    for one in examples:
        of = _images.name(one["image"])
        rows += ({"image": one["image"], "of": of}, {"text": one["text"], "of": of})
    return rows


def part_of(row: Example) -> str:
    """The tower that a row is for."""
    return "image" if "image" in row else "text"


def file_of(name: str) -> str:
    """The tower that a file of the processors is for."""
    return "image" if name == _images.PROCESSOR else "text"


def sample_text(example: Example) -> str:
    """The text, or the image's name."""
    return str(example["text"]) if part_of(example) == "text" else group_text(example)


def group_text(example: Example) -> str:
    """The image's name: an image with several texts never lies on two sides of a split."""
    return str(example.get("of") or _images.name(example["image"]))


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """No labels; raises BadInput where the recipe names some, and for another model than CLIP."""
    if config.model_type != "clip":
        raise BadInput(f"is a {config.model_type} model, not CLIP", todo="Only CLIP's two towers are known.")
    if asked:
        raise BadInput(
            "zero-shot-image-classification has no labels: the texts of the held-out rows are the candidates",
            where="recipe",
            todo="Leave data.labels out, and write the prompts into the text column.",
        )
    return []


def processor(folder: Path) -> dict[str, Any]:
    """By part, the image processor and the tokenizer of a folder, where it has them (an artefact has one)."""
    folder = Path(folder)
    return {
        part: make(folder)
        for part, file, make in (
            ("image", _images.PROCESSOR, _images.processor),
            ("text", "tokenizer.json", _text.processor),
        )
        if (folder / file).is_file()
    }


def encode(processor: Mapping[str, Any], examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """``pixel_values`` of images; ids with special tokens of texts, cut to ``max_length`` on the right, unpadded."""
    texts = [one["text"] for one in examples if part_of(one) == "text"]
    found = iter(_text.encodings(processor["text"], texts, max_length) if texts else ())
    return [
        _text.inputs(next(found))
        if part_of(one) == "text"
        else _images.encode(processor["image"], [one], max_length)[0]
        for one in examples
    ]


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, D]: the embeddings of the rows, as ``teach.dual`` gives them."""
    return outputs.pooler_output


def targets(examples: Sequence[Example]) -> list[str]:
    """The text of each pair, in both of its rows."""
    return [text for one in examples[1::2] for text in (one["text"],) * 2]


def hard_loss(stacked_MD: Any, targets: Sequence[str]) -> Any:
    """Image to text and text to image: mean cross entropy over the pairs of the batch, the two averaged.

    Pairs with equal texts are each other's targets too, in equal shares (UniCL, Yang et al. 2022, arXiv:2204.03610);
    where all differ this is CLIP's own loss.
    """
    import torch

    texts = targets[::2]
    same_PP = torch.tensor([[a == b for b in texts] for a in texts], dtype=torch.float32, device=stacked_MD.device)
    share_PP = same_PP / same_PP.sum(-1, keepdim=True)
    with torch.autocast(stacked_MD.device.type, enabled=False):
        logits_PP = stacked_MD[::2].float() @ stacked_MD[1::2].float().T
    return -sum((share_PP * one.log_softmax(-1)).sum(-1).mean() for one in (logits_PP, logits_PP.T)) / 2


def metrics(outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
    """``image_to_text``: images whose nearest of the different texts is theirs, a share (recall at 1; accuracy).

    ``text_to_image``: different texts whose nearest image is theirs. ``teacher_agreement``: images whose nearest text
    is the teacher's. Nearest is by cosine; an image that occurs several times counts once, for any of its texts.
    """
    nearest_IT, theirs_IT = _cosines(outputs, examples)
    found = {
        "image_to_text": float(theirs_IT[np.arange(len(nearest_IT)), nearest_IT.argmax(1)].mean()),
        "text_to_image": float(theirs_IT[nearest_IT.argmax(0), np.arange(nearest_IT.shape[1])].mean()),
    }
    if teacher is not None:
        found["teacher_agreement"] = float((nearest_IT.argmax(1) == _cosines(teacher, examples)[0].argmax(1)).mean())
    return found


def correct(outputs: Any, examples: Sequence[Example]) -> None:
    """None: whether an image goes right is a matter of all texts."""
    return None


def _cosines(outputs: Any, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the different images and the different texts, [I, T], and which belong together."""
    images: dict[str, int] = {}
    texts: dict[str, int] = {}
    for row, one in enumerate(examples):
        (texts if part_of(one) == "text" else images).setdefault(sample_text(one), row)
    first = {kind: {name: at for at, name in enumerate(some)} for kind, some in (("of", images), ("text", texts))}
    theirs_IT = np.zeros((len(images), len(texts)), bool)
    for one in examples:
        if part_of(one) == "text":
            theirs_IT[first["of"][one["of"]], first["text"][one["text"]]] = True

    def units(rows: Mapping[str, int]) -> np.ndarray:
        vectors = np.stack([np.asarray(outputs[row], np.float64) for row in rows.values()])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    return units(images) @ units(texts).T, theirs_IT
