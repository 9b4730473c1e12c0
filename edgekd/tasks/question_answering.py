"""Extractive question answering: a question and a text in, the words of the text that answer it out, or none.

The units are the [CLS] token (its score is that of "no answer", Devlin et al. 2019 and SQuAD 2.0) and then the words
of the text, so students and teachers with different tokenizers answer in the same words. A text longer than the
model reads becomes several windows, of which the best span wins. Refuses answers that are not where the table says
they are, and models that take no token_type_ids.
"""

from __future__ import annotations

import hashlib
import re
import string
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.errors import BadInput
from edgekd.tasks import _classes, _text
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "question-answering"
HEADLINE = "f1"
COLUMNS = ("question", "context", "answers")
OPTIONAL_COLUMNS = ("id",)
TEXT_COLUMNS = ("question", "context")
LIST_COLUMNS = ("answers",)
FILE_COLUMNS: tuple[str, ...] = ()
INPUTS = (*_text.INPUTS, "token_type_ids")
GROUP = 1
PER_UNIT = True
SOFT = "forward-kl"
LONGEST = 30  # words of an answer, as in the SQuAD scripts
OVERLAP = 3  # neighbouring windows share max_length // 3 tokens: 128 of 384, the field's custom
MISSING = -1e4  # the logit of a word that a shorter row of the batch does not have

processor = _text.processor


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"id", "passage", "question", "context", "answers": {"text": [..], "answer_start": [..]}}`` as in SQuAD.

    No answers at all means that the text has none (SQuAD 2.0); without the column the row is unlabelled. Raises
    BadInput for answers that do not stand at their ``answer_start``. A question is one line: its white space is
    single blanks, so the first line of `sample_text` is the question.
    """
    question, context = " ".join(row["question"].split()), row["context"]
    found = {
        "id": str(row.get("id") or _digest(question + "\n" + context)),
        "passage": _digest(context),
        "question": question,
        "context": context,
    }
    if "answers" not in row:
        return found
    answers = row["answers"]
    try:
        texts, starts = [str(one) for one in answers["text"]], [int(one) for one in answers["answer_start"]]
        pairs = list(zip(texts, starts, strict=True))
    except (KeyError, TypeError, ValueError):
        raise BadInput("'answers' is not {'text': [...], 'answer_start': [...]}") from None
    for text, start in pairs:
        if not text or context[start : start + len(text)] != text:
            raise BadInput(f"the answer '{text}' does not stand at character {start} of the context")
    return {**found, "answers": {"text": texts, "answer_start": starts}}


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """Windows of whole words: ``context`` is the window's text, ``offset`` where it begins, in characters.

    A window holds as many words as fit ``max_length`` tokens beside the question (itself cut to half of that);
    the next one begins at most ``max_length // 3`` tokens before its end. Labelled windows also have ``start``
    and ``end``, the units of the first answer: 0 where it does not lie in the window.
    """
    rows: list[Example] = []
    special = processor.num_special_tokens_to_add(True)
    processor.no_padding()
    processor.no_truncation()
    for one in examples:
        question, size = _cut(processor, one["question"], max_length // 2)
        words = _text.words(one["context"])
        for first, last in _windows(processor, one["context"], words, max_length - special - size, max_length):
            start, end = (words[first][0], words[last][1]) if words else (0, 0)
            row = {**one, "question": question, "context": one["context"][start:end], "offset": start}
            if "answers" in one:
                row["start"], row["end"] = _place(one["answers"], words, first, last)
            rows.append(row)
    return rows


def sample_text(example: Example) -> str:
    """Question and text, a line each."""
    return f"{example['question']}\n{example['context']}"


def group_text(example: Example) -> str:
    """What names the whole text: all questions and windows of a text stay on one side."""
    return str(example["passage"])


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """No labels; raises BadInput for another kind of model."""
    _classes.check_kind(config, "QuestionAnswering", "a question-answering model")
    if not hasattr(config, "type_vocab_size"):
        raise BadInput(f"a {config.model_type} takes no token_type_ids", todo="Use a teacher of BERT's kind.")
    if asked:
        raise BadInput("question-answering has no labels", where="recipe", todo="Leave data.labels out.")
    return []


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Ids, mask and types of question and text, cut to ``max_length``; ``units`` and ``unit_ends`` are the first and
    the last token of each unit that is left: [CLS], then the words."""
    found = []
    pairs = [(example["question"], example["context"]) for example in examples]
    for (_, context), one in zip(pairs, _text.encodings(processor, pairs, max_length), strict=True):
        firsts, lasts = _text.align(one, _text.words(context), sequence=1)
        while firsts and firsts[-1] == _text.LOST:
            firsts.pop()
        units, unit_ends = [0], [0]
        for first, last in zip(firsts, lasts, strict=False):  # a word without tokens borrows those before it
            units.append(units[-1] if first == _text.LOST else first)
            unit_ends.append(unit_ends[-1] if last == _text.LOST else last)
        found.append({**_text.inputs(one), "token_type_ids": one.type_ids, "units": units, "unit_ends": unit_ends})
    return found


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, S, 2]: start logits, end logits."""
    import torch

    return torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)


def take(logits_S2: Any, encoded: Encoded) -> Any:
    """[W, 2]: the start logit at each unit's first token, the end logit at its last."""
    found_W2 = logits_S2[encoded["units"]]
    found_W2[:, 1] = logits_S2[encoded["unit_ends"]][:, 1]
    return found_W2


def stack(outputs: Sequence[Any]) -> Any:
    """[2B, W]: of each row the distribution over starts, then over ends; units that a row has not at -1e4."""
    import torch
    import torch.nn.functional as F

    longest = max(len(output) for output in outputs)
    return torch.cat([F.pad(output.T, (0, longest - len(output)), value=MISSING) for output in outputs])


def targets(examples: Sequence[Example]) -> list[tuple[int, int] | None]:
    """``(start, end)`` units of the answer; (0, 0) where the window has none."""
    return [(example["start"], example["end"]) if "start" in example else None for example in examples]


def hard_loss(stacked_MW: Any, targets: Sequence[tuple[int, int] | None]) -> Any:
    """Mean cross entropy of starts and ends; answers that the model's cut text has lost do not count."""
    flat = [one for pair in targets for one in (pair or (None, None))]
    widths = (stacked_MW.detach() > MISSING / 2).sum(-1).tolist()
    kept = [one if one is not None and one < width else None for one, width in zip(flat, widths, strict=True)]
    return _classes.cross_entropy(stacked_MW, kept)


def metrics(outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
    """``f1`` and ``exact_match`` in [0, 1] as the SQuAD scripts compute them, over questions, not windows.

    A question's answer is the span with the highest start + end logit over all its windows, at most 30 words.
    Where the rows hold unanswerable questions, "no answer" wins when the lowest score of [CLS] over the windows
    is higher (Devlin et al. 2019, at threshold 0). ``teacher_agreement`` is the share of windows with one span.
    """
    questions: dict[str, list[tuple[np.ndarray, Example]]] = {}
    for output, one in zip(outputs, examples, strict=True):
        questions.setdefault(one["id"], []).append((np.asarray(output, np.float64), one))
    may_be_none = any(not one["answers"]["text"] for one in examples)
    exact, f1 = [], []
    for windows in questions.values():
        found = _answer(windows, may_be_none)
        gold = [text for text in windows[0][1]["answers"]["text"] if normal(text)] or [""]
        exact.append(max(float(normal(found) == normal(text)) for text in gold))
        f1.append(max(overlap(found, text) for text in gold))
    result = {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}
    if teacher is not None:
        result["teacher_agreement"] = float(agree(outputs, teacher).mean())
    return result


def agree(outputs: Any, others: Any) -> np.ndarray:
    """1.0 where both find the same span in the window ("no answer" is one), else 0.0."""
    pairs = [(_scores(np.asarray(a)), _scores(np.asarray(b))) for a, b in zip(outputs, others, strict=True)]
    return np.array([float(_best(a) == _best(b)) for a, b in pairs])


def app_settings(examples: Sequence[Example]) -> dict[str, Any]:
    """What an app needs to answer as ``metrics`` does."""
    may_be_none = any(not one["answers"]["text"] for one in examples)
    return {"may_be_none": may_be_none, "longest_answer": LONGEST, "overlap": OVERLAP}


def correct(outputs: Any, examples: Sequence[Example]) -> None:
    """None: rows are windows, and questions are what is scored."""
    return None


def answer(output: Any, example: Example, labels: Sequence[str], top_k: int = 3) -> list[dict[str, Any]]:
    """``[{"text", "start", "end", "score"}, ...]``: the ``top_k`` spans of the window, best first.

    ``start`` and ``end`` count characters of the whole text (with the window's offset); the score is the product
    of both probabilities. "No answer" is an empty text.
    """
    output_W2 = np.asarray(output, np.float64)
    shares_W2 = _classes.softmax(output_W2.T).T
    scores_WK = _scores(output_W2)
    found = []
    for flat in np.argsort(-scores_WK, axis=None, kind="stable")[:top_k]:
        first, more = divmod(int(flat), scores_WK.shape[1])
        if scores_WK[first, more] == -np.inf:
            break
        start, end = _characters(example, first, first + more)
        found.append(
            {
                "text": example["context"][start:end],
                "start": start + example.get("offset", 0),
                "end": end + example.get("offset", 0),
                "score": float(shares_W2[first, 0] * shares_W2[first + more, 1]),
            }
        )
    return found


def normal(text: str) -> str:
    """Lower case without punctuation, English articles and doubled spaces: what SQuAD compares."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def overlap(found: str, gold: str) -> float:
    """F1 of the two texts' words as bags; where one is empty, whether both are (SQuAD 2.0)."""
    ours, theirs = normal(found).split(), normal(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cut(processor: Any, text: str, limit: int) -> tuple[str, int]:
    """The text cut to so many tokens, and how many it has."""
    found = processor.encode(text, add_special_tokens=False)
    if len(found.ids) <= limit:
        return text, len(found.ids)
    return text[: found.offsets[limit - 1][1]], limit


def _windows(
    processor: Any, context: str, words: Sequence[tuple[int, int]], room: int, max_length: int
) -> list[tuple[int, int]]:
    """First and last word of each window; at least one word each, however long."""
    firsts, lasts = _text.align(processor.encode(context, add_special_tokens=False), words)
    begins, ends, token = [], [], 0  # of each word, in tokens; a word without tokens takes no room
    for first, last in zip(firsts, lasts, strict=True):
        begins.append(token if first == _text.LOST else first)
        token = token if last == _text.LOST else last + 1
        ends.append(token)
    shared = min(max_length // OVERLAP, max(room // 2, 0))
    found, first = [], 0
    while True:
        stop = max(bisect_right(ends, begins[first] + room) if words else 0, first + 1)
        found.append((first, stop - 1))
        if stop >= len(words):
            return found
        first = min(max(bisect_left(begins, ends[stop - 1] - shared), first + 1), stop)


def _place(answers: Mapping[str, Any], words: Sequence[tuple[int, int]], first: int, last: int) -> tuple[int, int]:
    """The units of the first answer in a window from word ``first`` to ``last``; (0, 0) where it is not inside."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    covered = _text.covering(words, start, start + len(answers["text"][0]))
    if covered is None or covered[0] < first or covered[1] > last:
        return 0, 0
    return covered[0] - first + 1, covered[1] - first + 1


def _scores(output_W2: np.ndarray) -> np.ndarray:
    """[W, 30]: start + end logit of the span from unit w over k more; [CLS] only alone, others never with it."""
    width = len(output_W2)
    scores_WK = np.full((width, LONGEST), -np.inf)
    for more in range(min(LONGEST, width)):
        scores_WK[: width - more, more] = output_W2[: width - more, 0] + output_W2[more:, 1]
    scores_WK[0, 1:] = -np.inf
    return scores_WK


def _best(scores_WK: np.ndarray) -> tuple[int, int]:
    first, more = divmod(int(scores_WK.argmax()), scores_WK.shape[1])
    return first, first + more


def _answer(windows: Sequence[tuple[np.ndarray, Example]], may_be_none: bool) -> str:
    """The text of the best span over a question's windows."""
    best, text, none = -np.inf, "", np.inf
    for output_W2, one in windows:
        scores_WK = _scores(output_W2)
        none = min(none, scores_WK[0, 0])
        scores_WK[0] = -np.inf
        if scores_WK.max() > best:
            best = scores_WK.max()
            start, end = _characters(one, *_best(scores_WK))
            text = one["context"][start:end]
    return "" if may_be_none and none > best else text


def _characters(example: Example, first: int, last: int) -> tuple[int, int]:
    """Characters of the window's text from unit ``first`` to ``last``; (0, 0) for [CLS]."""
    if first == 0:
        return 0, 0
    words = _text.words(example["context"])
    return words[first - 1][0], words[last - 1][1]
