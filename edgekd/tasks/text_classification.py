"""Text classification: one text in, one of C labels out.

The contract is in ``_contract.py``. Metrics are plain numpy so that they can run beside any runtime; each is
checked against scikit-learn in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.tasks import _classes, _text
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "text-classification"
HEADLINE = "accuracy"
COLUMNS = ("text", "label")
OPTIONAL_COLUMNS: tuple[str, ...] = ()
TEXT_COLUMNS = ("text",)
LIST_COLUMNS: tuple[str, ...] = ()
FILE_COLUMNS: tuple[str, ...] = ()
INPUTS = _text.INPUTS
GROUP = 1
PER_UNIT = False
SOFT = "forward-kl"

processor = _text.processor
stack = _classes.stack
targets = _classes.targets
hard_loss = _classes.cross_entropy
metrics = _classes.metrics
agree = _classes.agree
correct = _classes.correct
answer = _classes.answer


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"text", "label"}`` with the label as class id.

    A label is one of the names or, where it is no name, a class id written as a number. Raises BadInput for
    anything else; a row without a label column gives an unlabelled example (no ``label`` key).
    """
    text = row["text"].strip()
    return {"text": text, "label": _classes.class_id(row["label"], labels)} if "label" in row else {"text": text}


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """The examples themselves."""
    return list(examples)


def sample_text(example: Example) -> str:
    """The text."""
    return str(example["text"])


group_text = sample_text


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """The classifier's label names; raises BadInput for another kind of model or for contradicting names."""
    return _classes.names(config, asked, "SequenceClassification", "a sequence classifier")


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Ids with special tokens, cut to ``max_length`` on the right, unpadded (as transformers' tokenizers do it)."""
    found = _text.encodings(processor, [example["text"] for example in examples], max_length)
    return [_text.inputs(one) for one in found]


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, C]."""
    return outputs.logits


def take(logits_C: Any, encoded: Encoded) -> Any:
    """The row's logits as they are."""
    return logits_C
