"""More transfer text, made from the training text; the teacher labels it, so it need not mean the same.

A teacher says little beyond the hard labels on text that it was trained on; it says more on text beside it. All ways
work on words, so they depend on no tokenizer:

    delete      each word is dropped with probability 0.15
    replace     each word becomes, with probability 0.12, one of all words of the training text
    borrow      the same, from the whole words of the teacher's vocabulary: they teach the student what to make of words
                that the training text never uses (a trimmed vocabulary spells them in pieces)
    neighbour   the same, from the ten nearest words in the teacher's word table (TinyBERT, arXiv:1909.10351, section
                4.1, takes them from GloVe): other words in a sentence that still means something
    rotate      the text is cut at a random point and its two spans are swapped
    splice      the beginning of this text and the end of another
    cross       the same, where the two share a word: mostly a sentence that somebody could have written
    masked-lm   15 % of the words are masked and refilled by the teacher's own encoder (TinyBERT,
                arXiv:1909.10351, section 4.1), where its checkpoint still has a masked language model's head

Every copy changes at least one word where it can. Nothing is made that equals a held-out text or a training text
(case and white space aside); what comes out twice is dropped and counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.artifact import Facts, Progress, no_progress, read_json
from edgekd.errors import BadInput, closest

METHODS = ("delete", "replace", "borrow", "neighbour", "rotate", "splice", "cross", "masked-lm")
DELETED, REPLACED, NEIGHBOURS, MASKED = 0.15, 0.12, 0.25, 0.15
CANDIDATES = 10  # a masked word is drawn from this many most likely ones, a neighbour from as many nearest ones
SHARPNESS = 10.0  # a neighbour's share is exp(SHARPNESS * cosine)
BATCH = 64
# Parameter names of the masked language model's head: BERT, RoBERTa (a causal model has no dense there), DistilBERT,
# ELECTRA's generator.
HEADS = ("cls.predictions.", "lm_head.dense.", "vocab_transform.", "generator_predictions.")


@dataclass(frozen=True)
class Made:
    """One made text, the row of the text that it came from, and how."""

    text: str
    source: int
    method: str


@dataclass(frozen=True)
class Augmented:
    """The made texts, what the run records about them, and what the user should know."""

    texts: list[Made]
    facts: Facts
    warnings: list[str]


@dataclass(frozen=True)
class Corpus:
    """The training texts in words, their different words, and the words of the teacher's vocabulary.

    ``places``: where each word stands, as (text, position). ``neighbours``: by word in lower case without
    punctuation, its nearest words and their weights.
    """

    texts: list[list[str]]
    vocabulary: list[str]
    borrowed: list[str]
    places: Mapping[str, list[tuple[int, int]]]
    neighbours: Mapping[str, tuple[list[str], list[float]]]


@dataclass(frozen=True)
class Masked:
    """Words of a text, which of them are masked, and the random stream that refills them."""

    words: list[str]
    places: list[int]
    random: random.Random


def augment(
    texts: Sequence[str],
    copies: int,
    methods: Mapping[str, float],
    seed: int,
    *,
    exclude: Iterable[str],
    teacher: str,
    revision: str | None = None,
    progress: Progress = no_progress,
) -> Augmented:
    """``copies`` changed copies of every text, by methods drawn with these weights.

    What a copy is made by, and with which random numbers, follows from (seed, row, copy) alone, so more copies keep
    the earlier ones. ``exclude``: texts that must not come out (validation and test).
    ``teacher``: folder or hub id whose masked language model's head ``masked-lm`` uses; without one that method is
    left out and a warning says so. Raises BadInput for unknown methods and negative weights.
    """
    weights, warnings = _usable(methods, teacher, revision)
    corpus = _corpus(texts, weights if copies else {}, teacher, revision)
    names, shares = list(weights), list(weights.values())
    drafts: list[tuple[int, str, str | Masked]] = []
    for copy in range(copies if names else 0):
        for row, words in enumerate(corpus.texts):
            stream = random.Random(f"{seed}/{row}/{copy}")
            method = stream.choices(names, shares)[0]
            drafts.append((row, method, _change(method, words, row, corpus, stream)))
    jobs = [draft for _, _, draft in drafts if isinstance(draft, Masked)]
    filled = iter(refill(teacher, jobs, revision=revision, progress=progress) if jobs else [])
    seen = {_normal(text) for text in (*texts, *exclude, "")}
    kept = []
    for row, method, draft in drafts:
        text = next(filled) if isinstance(draft, Masked) else draft
        if _normal(text) not in seen:
            seen.add(_normal(text))
            kept.append(Made(text, row, method))
    facts = {
        "copies": copies,
        "made": len(kept),
        "dropped": len(drafts) - len(kept),
        "methods": dict(sorted(Counter(one.method for one in kept).items())),
    }
    return Augmented(kept, facts, warnings)


def has_mlm_head(model: str, revision: str | None = None) -> bool:
    """Whether a checkpoint (folder or hub id) has a masked language model's head, by its parameters' names alone."""
    from safetensors import SafetensorError, safe_open
    from transformers.utils.hub import cached_file

    def file(name: str) -> str | None:
        return cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    try:
        if whole := file("model.safetensors"):
            with safe_open(whole, framework="np") as weights:
                names = list(weights.keys())
        else:
            index = file("model.safetensors.index.json")
            names = list(read_json(Path(index))["weight_map"]) if index else []
    except (OSError, SafetensorError):
        return False
    return any(name.startswith(HEADS) for name in names)


def refill(
    model: str, jobs: Sequence[Masked], *, revision: str | None = None, progress: Progress = no_progress
) -> list[str]:
    """The texts with each masked word drawn from the ten likeliest other whole words, in the order of ``jobs``.

    Words that the model would have to spell in pieces are never drawn; a masked word that lies beyond the model's
    length stays. Deterministic: each job has its own random stream, and the batches are fixed.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    encoder = AutoModelForMaskedLM.from_pretrained(model, revision=revision, dtype=torch.float32).eval()
    spellings, whole_V = _whole_words(tokenizer, encoder.config.vocab_size)
    longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings - 2)
    out = [""] * len(jobs)
    order = sorted(range(len(jobs)), key=lambda i: (len(jobs[i].words), i))
    for start in range(0, len(order), BATCH):
        progress(start, len(jobs), "texts")
        batch = [jobs[i] for i in order[start : start + BATCH]]
        inputs = tokenizer(
            [_with_masks(job, tokenizer.mask_token) for job in batch],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        at_BS = inputs["input_ids"] == tokenizer.mask_token_id
        with torch.inference_mode():
            logits_BSV = encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        for i, job, at_S, logits_SV in zip(order[start : start + BATCH], batch, at_BS, logits_BSV, strict=True):
            words = list(job.words)
            if tokenizer.mask_token not in words:  # a text that spells the mask itself stays as it is
                scores = logits_SV[at_S].masked_fill(~whole_V, -torch.inf).topk(min(CANDIDATES + 1, len(whole_V)))
                shares_MK = scores.values.softmax(-1).tolist()
                for place, ids, shares in zip(job.places, scores.indices.tolist(), shares_MK, strict=False):
                    words[place] = _draw(words[place], [spellings[one] for one in ids], shares, job.random)
            out[i] = " ".join(words)
    progress(len(jobs), len(jobs), "texts")
    return out


def _usable(methods: Mapping[str, float], teacher: str, revision: str | None) -> tuple[dict[str, float], list[str]]:
    for name, weight in methods.items():
        if name not in METHODS:
            todo = f"Known: {', '.join(METHODS)}.{closest(name, METHODS)}"
            raise BadInput(f"unknown way '{name}'", where="data.augment.methods", todo=todo)
        if not 0 <= weight < float("inf"):
            raise BadInput(f"the share of '{name}' is {weight}", where="data.augment.methods", todo="Use 0 or more.")
    weights = {name: weight for name, weight in methods.items() if weight > 0}
    if "masked-lm" not in weights or has_mlm_head(teacher, revision):
        return weights, []
    del weights["masked-lm"]
    rest = f"used instead: {', '.join(weights)}" if weights else "no text was made"
    return weights, [f"augmentation by masked-lm left out ({rest}): the teacher's checkpoint has no MLM head"]


def _corpus(texts: Sequence[str], methods: Mapping[str, float], teacher: str, revision: str | None) -> Corpus:
    words = [text.split() for text in texts]
    places: dict[str, list[tuple[int, int]]] = {}
    for row, text in enumerate(words):
        for position, word in enumerate(text):
            places.setdefault(word, []).append((row, position))
    known = _known(teacher, revision) if methods.keys() & {"borrow", "neighbour"} else {}
    asked = {_bare(word)[1] for word in places} if "neighbour" in methods else set()
    return Corpus(words, sorted(places), sorted(known), places, _neighbours(asked, known, teacher, revision))


def _known(teacher: str, revision: str | None) -> dict[str, int]:
    """The words of three letters and more that the teacher's tokenizer keeps whole, and their ids.

    Raises BadInput without any.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher, revision=revision)
    spellings, whole_V = _whole_words(tokenizer, len(tokenizer))
    pairs = zip(spellings, whole_V, strict=True)
    if words := {one: i for i, (one, whole) in enumerate(pairs) if whole and one.isalpha() and len(one) > 2}:
        return words
    raise BadInput(
        "the teacher's vocabulary has no whole words",
        where="data.augment.methods",
        todo="Leave out 'borrow' and 'neighbour'.",
    )


def _neighbours(
    words: set[str], known: Mapping[str, int], teacher: str, revision: str | None
) -> dict[str, tuple[list[str], list[float]]]:
    """Of each word that the teacher knows whole, the nearest others by cosine in its word table, and their weights."""
    import torch
    from transformers import AutoModel

    asked, names = sorted(words & known.keys()), list(known)
    if not asked or len(names) < 2:
        return {}
    model = AutoModel.from_pretrained(teacher, revision=revision, dtype=torch.float32, use_safetensors=True)
    table_VH = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach(), dim=-1)
    known_NH, place = table_VH[list(known.values())], {word: i for i, word in enumerate(names)}
    found = {}
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        cosine_BN = table_VH[[known[word] for word in batch]] @ known_NH.T
        cosine_BN[range(len(batch)), [place[word] for word in batch]] = -torch.inf
        near = cosine_BN.topk(min(CANDIDATES, len(names) - 1))
        weights_BK = (SHARPNESS * near.values).exp()
        for word, ids, weights in zip(batch, near.indices.tolist(), weights_BK.tolist(), strict=True):
            found[word] = [names[i] for i in ids], weights
    return found


def _bare(word: str) -> tuple[str, str, str]:
    """What stands before a word, itself in lower case, and what stands behind it: '(Card?' -> '(', 'card', '?'."""
    start = next((i for i, char in enumerate(word) if char.isalnum()), len(word))
    end = next((i for i in range(len(word), start, -1) if word[i - 1].isalnum()), start)
    return word[:start], word[start:end].lower(), word[end:]


def _change(method: str, words: list[str], row: int, corpus: Corpus, stream: random.Random) -> str | Masked:
    """The changed text, or for masked-lm what is to be refilled."""
    if not words:
        return ""
    if method == "delete":
        gone = _chosen(len(words), DELETED, stream)
        return " ".join(word for i, word in enumerate(words) if i not in gone) if len(gone) < len(words) else words[0]
    if method in ("replace", "borrow"):
        gone = _chosen(len(words), REPLACED, stream)
        new = stream.choices(corpus.vocabulary if method == "replace" else corpus.borrowed, k=len(words))
        return " ".join(new[i] if i in gone else word for i, word in enumerate(words))
    if method == "neighbour":
        able = [i for i, word in enumerate(words) if _bare(word)[1] in corpus.neighbours]
        gone = {able[k] for k in _chosen(len(able), NEIGHBOURS, stream)} if able else set()
        return " ".join(_near(word, corpus, stream) if i in gone else word for i, word in enumerate(words))
    if method == "rotate":
        cut = stream.randrange(1, max(2, len(words)))
        return " ".join(words[cut:] + words[:cut])
    if method == "splice":
        other = corpus.texts[(row + stream.randrange(1, max(2, len(corpus.texts)))) % len(corpus.texts)]
        end = other[stream.randrange(len(other)) :] if other else []
        return " ".join(words[: stream.randrange(1, len(words) + 1)] + end)
    if method == "cross":
        cut = stream.randrange(len(words))
        other, position = stream.choice(corpus.places[words[cut]])
        return " ".join(words[: cut + 1] + corpus.texts[other][position + 1 :])
    return Masked(words, sorted(_chosen(len(words), MASKED, stream)), stream)


def _near(word: str, corpus: Corpus, stream: random.Random) -> str:
    before, bare, behind = _bare(word)
    return before + stream.choices(*corpus.neighbours[bare])[0] + behind


def _chosen(count: int, probability: float, stream: random.Random) -> set[int]:
    """Each of ``count`` places with this probability, but at least one."""
    return {i for i in range(count) if stream.random() < probability} or {stream.randrange(count)}


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _with_masks(job: Masked, mask: str) -> str:
    places = set(job.places)
    return " ".join(mask if i in places else word for i, word in enumerate(job.words))


def _draw(old: str, words: list[str], shares: list[float], stream: random.Random) -> str:
    """One of the likely words, in proportion to their probability, but never the one that was masked."""
    likely = [
        (word, share) for word, share in zip(words, shares, strict=True) if share and word.casefold() != old.casefold()
    ]
    return stream.choices(*zip(*likely, strict=True))[0] if likely else old


def _whole_words(tokenizer: Any, size: int) -> tuple[list[str], Any]:
    """The spelling of every id, and which ids are whole words: those whose spelling is cut into that id alone."""
    import torch

    spellings = [text.strip() for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])]
    again = tokenizer([" " + text for text in spellings], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    whole_V = torch.zeros(size, dtype=torch.bool)
    for i, (text, ids) in enumerate(zip(spellings, again, strict=True)):
        whole_V[i] = ids == [i] and i not in special and any(c.isalnum() for c in text) and len(text.split()) == 1
    return spellings, whole_V
