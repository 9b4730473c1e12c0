"""What the text tasks share: the tokenizer, token ids, and where the words of a text lie among its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput
from edgekd.tasks._contract import Encoded

INPUTS = ("input_ids", "attention_mask")
LOST = -1  # the token of a word that has none, because the text was cut before it


def processor(folder: Path) -> Any:
    """The ``tokenizers.Tokenizer`` in ``folder/tokenizer.json``, without padding and truncation of its own."""
    from tokenizers import Tokenizer

    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise BadInput("no such tokenizer", where=str(file))
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encodings(tokenizer: Any, texts: Sequence[Any], max_length: int) -> list[Any]:
    """``tokenizers`` encodings of texts or pairs of texts, with special tokens, cut to ``max_length`` on the right.

    Of a pair the longer text is cut first.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return list(tokenizer.encode_batch(list(texts)))


def inputs(encoding: Any) -> Encoded:
    """Ids and attention mask of one encoding, unpadded (as transformers' tokenizers give them)."""
    return {"input_ids": encoding.ids, "attention_mask": [1] * len(encoding.ids)}


def words(text: str) -> list[tuple[int, int]]:
    """Character spans of the words of a text: split at white space and at punctuation, each mark a word.

    The rule is that of BERT's pre-tokenizer, whatever the model: units must not depend on a tokenizer. Scripts
    that put no space between words come out as one word a run.
    """
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return [span for _, span in BertPreTokenizer().pre_tokenize_str(text)]


def align(encoding: Any, spans: Sequence[Sequence[int]], sequence: int = 0) -> tuple[list[int], list[int]]:
    """Indices of the first and of the last token that overlap each character span; LOST where none does.

    ``spans`` are ordered. ``sequence`` is 1 for spans of the second text of a pair. A token that overlaps two
    words belongs to both.
    """
    tokens = [
        (index, start, end)
        for index, ((start, end), of) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True))
        if of == sequence and end > start
    ]
    firsts, lasts, begin = [], [], 0
    for start, end in spans:
        while begin < len(tokens) and tokens[begin][2] <= start:
            begin += 1
        stop = begin
        while stop < len(tokens) and tokens[stop][1] < end:
            stop += 1
        firsts.append(tokens[begin][0] if stop > begin else LOST)
        lasts.append(tokens[stop - 1][0] if stop > begin else LOST)
    return firsts, lasts


def covering(spans: Sequence[Sequence[int]], start: int, end: int) -> tuple[int, int] | None:
    """Indices of the first and the last span that overlap the characters ``start:end``; None where none does."""
    found = [i for i, (first, last) in enumerate(spans) if first < end and last > start]
    return (found[0], found[-1]) if found else None
