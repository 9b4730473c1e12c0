"""What the tokenizer cores in ``runtimes/`` run: the list that all keep to, and what one has more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput

# By place in tokenizer.json: the types that are written, and the field that lists the parts of a Sequence.
PARTS: dict[str, tuple[frozenset[str], str]] = {
    "normalizer": (frozenset({"BertNormalizer", "Lowercase", "Replace", "Prepend"}), "normalizers"),
    "pre_tokenizer": (frozenset({"BertPreTokenizer", "ByteLevel", "Metaspace"}), "pretokenizers"),
    "model": (frozenset({"WordPiece", "BPE", "Unigram"}), ""),
    "post_processor": (
        frozenset({"TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel"}),
        "processors",
    ),
}
# By platform, what its core runs beside that. What is in neither is refused before anything is written.
MORE: dict[str, dict[str, frozenset[str]]] = {
    "linux": {"normalizer": frozenset({"Precompiled", "Strip"}), "pre_tokenizer": frozenset({"WhitespaceSplit"})},
}


def check(file: Path, platform: str) -> None:
    """Raise BadInput for a tokenizer that the platform's core does not run, naming the part."""
    try:
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"no tokenizer ({error})", where=str(file)) from None
    for place, (common, inner) in PARTS.items():
        known = common | MORE.get(platform, {}).get(place, frozenset())
        for part in _parts(tokenizer.get(place), inner):
            if (kind := _kind(part)) not in known:
                what = f"no native core runs the {place.replace('_', '-')} {kind} on {platform}"
                todo = "Use --tokenizer library where the platform has one, or a student with another tokenizer."
                raise BadInput(what, where=str(file), todo=todo)


def _parts(part: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    if part is not None and part.get("type") == "Sequence":
        for one in part[inner]:
            yield from _parts(one, inner)
    elif part is not None:
        yield part


def _kind(part: Mapping[str, Any]) -> str:
    """Old files give a model no type: each kind is told by a field that it alone has."""
    guess = "BPE" if "merges" in part else "WordPiece" if "max_input_chars_per_word" in part else "without a type"
    return str(part.get("type") or guess)
