"""Token classification: one tag per word, read as labelled spans (names, dates, slots) in BIO notation.

The units are words, as the table gives them or as ``_text.words`` finds them; a word's tag is read at its first
token. Words that a cut text has lost count as outside every span, so a short ``max_length`` costs score instead of
hiding its cost. Refuses tags that are not BIO: spans could not be read from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edgekd.errors import BadInput
from edgekd.tasks import _classes, _text
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "token-classification"
HEADLINE = "span_f1"
COLUMNS: tuple[str, ...] = ()  # `tokens` and `tags`, or `text` and `spans`
OPTIONAL_COLUMNS = ("text", "tokens", "tags", "spans")
TEXT_COLUMNS = ("text",)
LIST_COLUMNS = ("tokens", "tags", "spans")
FILE_COLUMNS: tuple[str, ...] = ()
INPUTS = _text.INPUTS
GROUP = 1
PER_UNIT = True
SOFT = "forward-kl"
BIO = re.compile(r"O|[BI](-.+)?")

Span = tuple[str, int, int]  # label, first word, last word

processor = _text.processor


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"text", "words": [[start, end], ...], "tags": [ids], "labels": names}``; words are character spans.

    The row has ``tokens`` and ``tags`` (lists of equal length; names, or ids in the teacher's order), with the
    ``text`` they come from or else joined by spaces; or ``text`` and ``spans``
    (``[{"start", "end", "label"}, ...]`` in characters). Raises BadInput for anything that does not fit together.
    """
    tokens, text = row.get("tokens") or [], row.get("text") or ""
    if not tokens and not text:
        raise BadInput("has neither text nor tokens")
    if tokens:
        text, words = _located(tokens, text)
    else:
        words = _text.words(text)
    found = {"text": text, "words": [list(span) for span in words], "labels": list(labels)}
    if not labels:
        return found
    if tokens and row.get("tags"):
        tags = row["tags"]
        if len(tags) != len(tokens):
            raise BadInput(f"has {len(tokens)} tokens and {len(tags)} tags")
    elif isinstance(row.get("spans"), list):
        tags = _tags_of(row["spans"], words)
    else:
        raise BadInput("has no tags and no spans", todo="Give tokens and tags, or text and spans (JSONL or Parquet).")
    return {**found, "tags": [_classes.class_id(tag, labels) for tag in tags]}


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """The examples themselves; long ones are cut, not split."""
    return list(examples)


def sample_text(example: Example) -> str:
    """The text; with a line end after each word where the words are not those of `_text.words`."""
    text, words = str(example["text"]), [tuple(span) for span in example["words"]]
    if words == _text.words(text):
        return text
    ends = [0, *(end for _, end in words), len(text)]
    return "\n".join(text[start:end] for start, end in pairwise(ends))


def group_text(example: Example) -> str:
    """The text."""
    return str(example["text"])


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """The tagger's BIO tags; raises BadInput for another kind of model, other tags, or contradicting names."""
    found = _classes.names(config, asked, "TokenClassification", "a token classifier")
    wrong = next((name for name in found if not BIO.fullmatch(name)), None)
    if wrong is not None and not all(name == f"LABEL_{i}" for i, name in enumerate(found)):
        raise BadInput(f"its label '{wrong}' is no BIO tag", todo="Tags are O, B-<name> and I-<name>.")
    if wrong is not None:
        raise BadInput("its labels have no names", todo="Set data.labels to its BIO tags, in its order.")
    return found


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Ids and mask of the text, cut to ``max_length``; ``units``: the first token of each word, -1 where it is lost."""
    found = _text.encodings(processor, [example["text"] for example in examples], max_length)
    return [
        {**_text.inputs(one), "units": _text.align(one, example["words"])[0]}
        for one, example in zip(found, examples, strict=True)
    ]


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, S, C]."""
    return outputs.logits


def take(logits_SC: Any, encoded: Encoded) -> Any:
    """[W, C]: the logits at each word's first token; zeros where the word is lost."""
    units = encoded["units"]
    found_WC = logits_SC[[max(token, 0) for token in units]]
    lost = [word for word, token in enumerate(units) if token == _text.LOST]
    if lost:
        found_WC[lost] = 0
    return found_WC


def stack(outputs: Sequence[Any]) -> Any:
    """All words of all rows, [sum W, C]."""
    import torch

    return torch.cat(list(outputs))


def targets(examples: Sequence[Example]) -> list[list[int]]:
    """The words' tag ids, -100 in rows without tags."""
    return [example.get("tags") or [_classes.UNLABELLED] * len(example["words"]) for example in examples]


def hard_loss(stacked_MC: Any, targets: Sequence[Sequence[int]]) -> Any:
    """Mean cross entropy over the tagged words that the model has seen."""
    seen = stacked_MC.detach().any(-1).tolist()
    flat = [tag for row in targets for tag in row]
    return _classes.cross_entropy(
        stacked_MC, [tag if one else _classes.UNLABELLED for tag, one in zip(flat, seen, strict=True)]
    )


def metrics(outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
    """``span_f1``, ``span_precision``, ``span_recall``, ``token_accuracy``, with a teacher ``teacher_agreement``.

    A span counts when label, first and last word are right; precision, recall and F1 are over the spans of all
    rows together, as conlleval and seqeval (default mode) count them. ``token_accuracy`` is the share of words
    with the right tag; agreement that of a row's words, averaged over rows.
    """
    right = hits = predicted = expected = words = 0
    for output, example in zip(outputs, examples, strict=True):
        names, tags_W = example["labels"], np.array(example["tags"], dtype=int)
        found_W = _predicted(output, names)
        right += int((found_W == tags_W).sum())
        words += len(tags_W)
        ours = set(spans([names[tag] for tag in found_W]))
        theirs = set(spans([names[tag] for tag in tags_W]))
        hits, predicted, expected = hits + len(ours & theirs), predicted + len(ours), expected + len(theirs)
    found = {
        "span_f1": 2 * hits / max(predicted + expected, 1),
        "span_precision": hits / max(predicted, 1),
        "span_recall": hits / max(expected, 1),
        "token_accuracy": right / max(words, 1),
    }
    if teacher is not None:
        found["teacher_agreement"] = float(agree(outputs, teacher).mean())
    return found


def agree(outputs: Any, others: Any) -> np.ndarray:
    """The share of each row's words with the same tag; 1.0 for a row without words."""
    pairs = [(np.asarray(a).argmax(-1), np.asarray(b).argmax(-1)) for a, b in zip(outputs, others, strict=True)]
    return np.array([float((a == b).mean()) if len(a) else 1.0 for a, b in pairs])


def correct(outputs: Any, examples: Sequence[Example]) -> None:
    """None: span F1 is a number of all rows together."""
    return None


def answer(output: Any, example: Example, labels: Sequence[str], top_k: int = 3) -> list[dict[str, Any]]:
    """``[{"label", "start", "end", "text", "score"}, ...]`` in the order of the text, all of them.

    ``start`` and ``end`` count characters; the score is the mean probability of the words' tags.
    """
    tags_W = _predicted(output, labels)
    score_W = _classes.softmax(np.asarray(output, np.float64)).max(-1)
    found = []
    for label, first, last in spans([labels[tag] for tag in tags_W]):
        start, end = example["words"][first][0], example["words"][last][1]
        score = float(score_W[first : last + 1].mean())
        found.append({"label": label, "start": start, "end": end, "text": example["text"][start:end], "score": score})
    return found


def spans(tags: Sequence[str]) -> list[Span]:
    """Labelled spans of a row's BIO tags, in order.

    A span begins at B, and at an I that does not continue a span of its label (IOB1 files have such); it ends
    before the next O, B or I of another label (Ramshaw & Marcus 1995; Tjong Kim Sang & De Meulder 2003).
    """
    found: list[Span] = []
    before: str | None = None  # the label of the span that the word before belongs to
    for word, tag in enumerate(tags):
        kind, _, label = tag.partition("-")
        if kind == "O":
            before = None
            continue
        if kind == "I" and label == before:
            found[-1] = (label, found[-1][1], word)
        else:
            found.append((label, word, word))
        before = label
    return found


def _predicted(output: Any, labels: Sequence[str]) -> np.ndarray:
    """Tag ids [W]; the one of "O" for lost words."""
    output_WC = np.asarray(output)
    outside = labels.index("O") if "O" in labels else 0
    return np.where(output_WC.any(-1), output_WC.argmax(-1), outside)


def _located(tokens: Sequence[Any], text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text (made of the tokens where there is none) and where each token lies in it."""
    if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
        raise BadInput("'tokens' is not a list of words")
    text = text or " ".join(tokens)
    found, position = [], 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0:
            raise BadInput(f"the token '{token}' does not occur in the text behind those before it")
        position = start + len(token)
        found.append((start, position))
    return text, found


def _tags_of(spans: Sequence[Any], words: Sequence[tuple[int, int]]) -> list[str]:
    """BIO tags of spans given in characters; a span covers every word that it touches."""
    tags = ["O"] * len(words)
    for span in spans:
        try:
            start, end, label = int(span["start"]), int(span["end"]), str(span["label"])
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"a span has not the keys start, end and label ({span})") from None
        covered = _text.covering(words, start, end)
        if covered is None:
            raise BadInput(f"the span '{label}' ({start} to {end}) covers no word of the text")
        first, last = covered
        if any(tag != "O" for tag in tags[first : last + 1]):
            raise BadInput(f"the span '{label}' ({start} to {end}) overlaps another", todo="Spans must not overlap.")
        tags[first : last + 1] = [f"B-{label}", *[f"I-{label}"] * (last - first)]
    return tags
