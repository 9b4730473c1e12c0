"""A smaller vocabulary: the same tokenizer with the tokens that the user's text needs, and exact ids.

Most of a small student's weights are the rows of its word table, and most rows never occur in its texts. ``trim``
rewrites a ``tokenizer.json`` so that text made of kept tokens is cut exactly as before (new id = place of the old id
in ``kept``), and any runtime that reads the format cuts it alike. Other words fall back to shorter pieces, because
single characters stay. It knows WordPiece, BPE and Unigram and refuses the rest (a word-level vocabulary has no
pieces to fall back to).
"""

from __future__ import annotations

import json
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput

SPOKEN = ("model", "normalizer", "pre_tokenizer", "added_tokens")  # the parts that decide how a text is cut
ASCII = frozenset(string.ascii_letters + string.digits + string.punctuation)
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))  # the pieces of byte fallback
TRIMMED = ("WordPiece", "BPE", "Unigram")
COPIED = ("special_tokens_map.json", "chat_template.jinja", "preprocessor_config.json")  # files without ids


@dataclass(frozen=True)
class Trimmed:
    """A parsed ``tokenizer.json`` and, for each of its ids, the id that the token had before (ascending)."""

    tokenizer: dict[str, Any]
    kept: list[int]


def read(folder: Path) -> dict[str, Any]:
    """The parsed tokenizer.json of a folder."""
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return found


def count(encoded_ids: Iterable[Iterable[int]]) -> Counter[int]:
    """How often each token id occurs in encoded texts."""
    counted: Counter[int] = Counter()
    for ids in encoded_ids:
        counted.update(map(int, ids))
    return counted


def trim(
    tokenizer: Mapping[str, Any],
    counts: Mapping[int, int],
    coverage: float,
    *,
    others: Mapping[int, int] | None = None,
    size: int = 0,
    always: Iterable[int] = (),
) -> Trimmed:
    """Keep the most frequent tokens that make up ``coverage`` of all counted ones, and what they need.

    A vocabulary smaller than ``size`` is filled up to it with the most frequent tokens of ``others`` (and, beyond
    ``size``, with what these are merged from). ``always`` are ids that stay whatever the text is.

    ``tokenizer`` is a parsed tokenizer.json; it is not changed. Special and added tokens do not count as text and
    always stay. So do the single characters of ASCII and of every counted token (for byte-level models all 256
    bytes), and for BPE every token on the way to a kept one. Raises BadInput for other models and for a coverage
    outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise BadInput(f"the coverage of a vocabulary is in (0, 1], not {coverage}")
    model = tokenizer["model"]
    pieces = _pieces(model)
    tokens = {id: token for token, id in pieces.items()}
    fixed = {token["id"] for token in tokenizer["added_tokens"]} | (tokens.keys() & set(always))
    if model.get("unk_token") in pieces:
        fixed.add(pieces[model["unk_token"]])
    if model.get("unk_id") is not None:
        fixed.add(model["unk_id"])
    if tokenizer.get("padding"):
        fixed.add(tokenizer["padding"]["pad_id"])
    text = {id: n for id, n in counts.items() if n and id in tokens and id not in fixed}
    kept = fixed | _frequent(text, coverage)
    prefix, suffix = (model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    bare = {token: token.removeprefix(prefix).removesuffix(suffix) for token in pieces}
    whole = _has(tokenizer.get("pre_tokenizer"), "ByteLevel")  # then every single character is a byte
    alphabet = ASCII | {char for id in text for char in bare[tokens[id]]}
    for token, id in pieces.items():
        if token in BYTES or (len(bare[token]) == 1 and (whole or bare[token] in alphabet)):
            kept.add(id)
    if model["type"] == "BPE":
        _close(kept, model, pieces)
    more = {id: n for id, n in (others or {}).items() if n and id in tokens and id not in kept}
    kept |= set(sorted(more, key=lambda id: (-more[id], id))[: max(0, size - len(kept))])
    if model["type"] == "BPE":
        _close(kept, model, pieces)
    order = sorted(kept)
    return Trimmed(_rewritten(tokenizer, {old: new for new, old in enumerate(order)}), order)


def are_others(theirs: Path, mine: Path) -> bool:
    """Whether a student's tokens are neither the teacher's nor some of them. Both are tokenizer folders."""
    source, made = read(theirs), read(mine)
    return bool(made["model"] != source["model"] and renumbering(source, made) is None)


def new_ids(theirs: Path, mine: Path) -> list[int] | None:
    """The student's ids of the teacher's tokens (-1: it lacks that one) where its vocabulary is trimmed; else None.

    Both are tokenizer folders. Raises BadInput for a student with other tokens: its distributions have no ids in common
    with the teacher's.
    """
    source, made = read(theirs), read(mine)
    if made["model"] == source["model"]:
        return None
    found = renumbering(source, made)
    if found is None:
        raise BadInput(
            "its tokens are not the teacher's, so the two distributions cannot be compared",
            where="distill.student.model",
            todo="Learn from the teacher's answers instead (teacher.endpoint), let it write (distill.on_policy), "
            "or take a student of its family.",
        )
    return found


def renumbering(source: Mapping[str, Any], made: Mapping[str, Any]) -> list[int] | None:
    """The new id of each of a tokenizer's tokens, -1 for those that are gone; None where ``made`` is another tokenizer.

    Both are parsed tokenizer.json files; ``made`` is one that ``trim`` makes of ``source``.
    """
    kinds = {one["model"]["type"] for one in (source, made)}
    if len(kinds) > 1 or not kinds <= set(TRIMMED):
        return None
    old, new = _ids(source), _ids(made)
    ids = {id: new[token] for token, id in old.items() if token in new}
    needed = {token["id"] for token in source["added_tokens"]}
    if len(ids) != len(new) or not needed <= ids.keys():
        return None
    again = _rewritten({name: source.get(name) for name in SPOKEN}, ids)
    if any(again[name] != made.get(name) for name in SPOKEN):
        return None
    return [ids.get(id, -1) for id in range(max(old.values()) + 1)]


def outside(old: Any, new: Any, kept: Sequence[int], texts: Sequence[str]) -> dict[str, float]:
    """What the trimmed tokenizer does to other texts; ``old`` and ``new`` are ``tokenizers.Tokenizer``.

    ``texts``: how many; then shares of them: ``same`` is cut into the same pieces, ``more_pieces`` into more, and
    ``unknown`` has unknown tokens that the old tokenizer did not see.
    """
    same = more = unknown = 0
    old_unknown, new_unknown = _unknown(old), _unknown(new)
    for text in texts:
        before, after = old.encode(text).ids, new.encode(text).ids
        same += [kept[id] for id in after] == before
        more += len(after) > len(before)
        unknown += after.count(new_unknown) > before.count(old_unknown)
    shares = {"same": same, "more_pieces": more, "unknown": unknown}
    return {"texts": len(texts), **{name: n / max(1, len(texts)) for name, n in shares.items()}}


def write(source: Path, trimmed: Trimmed, out: Path) -> None:
    """Write the tokenizer folder ``source`` with the trimmed vocabulary to ``out``.

    Files that hold ids are rewritten; other vocabulary files (vocab.txt, merges.txt, *.model) are left out, because
    tokenizer.json says it all and two truths disagree sooner or later.
    """
    out.mkdir(parents=True, exist_ok=True)
    ids = {old: new for new, old in enumerate(trimmed.kept)}
    _dump(out / "tokenizer.json", trimmed.tokenizer)
    config = source / "tokenizer_config.json"
    if config.is_file():
        settings = json.loads(config.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in settings:
            found = {int(id): token for id, token in settings["added_tokens_decoder"].items()}
            settings["added_tokens_decoder"] = {str(ids[id]): token for id, token in found.items() if id in ids}
        _dump(out / config.name, settings)
    added = source / "added_tokens.json"
    if added.is_file():
        found = json.loads(added.read_text(encoding="utf-8"))
        _dump(out / added.name, {token: ids[id] for token, id in found.items() if id in ids})
    for name in COPIED:
        if (source / name).is_file():
            (out / name).write_bytes((source / name).read_bytes())


def _pieces(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] not in TRIMMED:
        raise BadInput(
            f"the vocabulary of a {model['type']} tokenizer cannot be trimmed",
            where="distill.student.vocabulary",
            todo="Leave it out; WordPiece, BPE and Unigram tokenizers can be trimmed.",
        )
    if model["type"] == "Unigram":
        return {piece: id for id, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """All tokens of a tokenizer, those beside its model included."""
    return _pieces(tokenizer["model"]) | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _frequent(counts: Mapping[int, int], coverage: float) -> set[int]:
    """The most frequent ids until their share of all counts reaches ``coverage``; ties go to the lower id."""
    goal, reached, kept = coverage * sum(counts.values()), 0, set()
    for id in sorted(counts, key=lambda id: (-counts[id], id)):
        if reached >= goal:
            break
        kept.add(id)
        reached += counts[id]
    return kept


def _has(part: Any, kind: str) -> bool:
    """Whether a (possibly nested) pre-tokenizer is or holds one of this type."""
    return bool(part) and (part["type"] == kind or any(_has(one, kind) for one in part.get("pretokenizers", ())))


def _merges(model: Mapping[str, Any]) -> list[tuple[Any, str, str, str]]:
    """(as written, left, right, result) of each merge, in order; old files write "left right" as one string."""
    mark = model.get("continuing_subword_prefix") or ""
    parted = [(merge, *(merge.split(" ") if isinstance(merge, str) else merge)) for merge in model["merges"]]
    return [(merge, left, right, left + right.removeprefix(mark)) for merge, left, right in parted]


def _close(kept: set[int], model: Mapping[str, Any], pieces: Mapping[str, int]) -> None:
    """Add the parts of every merge that builds a kept token, and theirs."""
    parts = defaultdict(set)
    for _, left, right, result in _merges(model):
        parts[pieces[result]] |= {pieces[left], pieces[right]}
    waiting = list(kept)
    while waiting:
        for id in parts[waiting.pop()] - kept:
            kept.add(id)
            waiting.append(id)


def _rewritten(tokenizer: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """A copy of the tokenizer with the kept tokens under their new ids, wherever an id is written."""
    made = json.loads(json.dumps(tokenizer))
    model = made["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for id, entry in enumerate(model["vocab"]) if id in ids]
        if model.get("unk_id") is not None:
            model["unk_id"] = ids[model["unk_id"]]
    else:
        in_order = sorted(model["vocab"].items(), key=lambda entry: entry[1])
        model["vocab"] = {token: ids[id] for token, id in in_order if id in ids}
    if model["type"] == "BPE":
        vocabulary = model["vocab"]
        model["merges"] = [merge for merge, *texts in _merges(model) if all(text in vocabulary for text in texts)]
    for token in made["added_tokens"]:
        token["id"] = ids[token["id"]]
    if made.get("padding"):
        made["padding"]["pad_id"] = ids[made["padding"]["pad_id"]]
    _remap_post(made.get("post_processor"), ids)
    return made


def _remap_post(part: dict[str, Any] | None, ids: Mapping[int, int]) -> None:
    if part is None:
        return
    for one in part.get("processors", ()):
        _remap_post(one, ids)
    if part["type"] == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [ids[id] for id in token["ids"]]
    for name in ("sep", "cls"):  # BertProcessing and RobertaProcessing: [token, id]
        if name in part:
            part[name] = [part[name][0], ids[part[name][1]]]


def _unknown(tokenizer: Any) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "Unigram":
        found: int | None = model["unk_id"]
        return found
    return model["vocab"].get(model["unk_token"])


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
