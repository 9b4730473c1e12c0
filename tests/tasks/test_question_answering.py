"""Windows lose no answer; scores are SQuAD's, written out once more; the best span is that of a slow search."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgekd.errors import BadInput
from edgekd.tasks import question_answering as task

WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """WordPiece: words with an even number are one token, the others are cut in up to four."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", "##w", ".", ",", "?", *(str(d) for d in range(10))]
    pieces += [*(f"##{d}" for d in range(10)), *(word for word in WORDS if int(word[1:]) % 2 == 0)]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def example(context: str, *answers: str, question: str = "w2 w4?", name: str = "q") -> dict:  # type: ignore[type-arg]
    starts = [context.index(answer) for answer in answers]
    row = {
        "id": name,
        "question": question,
        "context": context,
        "answers": {"text": [*answers], "answer_start": starts},
    }
    return dict(task.example(row, []))


def test_windows_fit_cover_every_word_overlap_and_hold_the_answer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    chance = random.Random(0)
    for number in range(40):
        words = chance.choices(WORDS, k=chance.randint(1, 90))
        first = chance.randrange(len(words))
        context = " ".join([*words[:first], "w6", *words[first:]])
        start = len(" ".join(words[:first])) + (first > 0)
        row = {"question": "w2 w4?", "context": context, "answers": {"text": ["w6"], "answer_start": [start]}}
        rows = task.expand([task.example(row, [])], tokenizer, 32)
        encoded = task.encode(tokenizer, rows, 32)
        full = task.encode(tokenizer, rows, 10_000)
        assert [one["input_ids"] for one in encoded] == [one["input_ids"] for one in full], number  # nothing is cut
        covered = set()
        for one in rows:
            assert context[one["offset"] :].startswith(one["context"])
            covered |= set(range(one["offset"], one["offset"] + len(one["context"])))
            if one["start"]:
                spans = task._text.words(one["context"])
                begin, end = spans[one["start"] - 1][0], spans[one["end"] - 1][1]
                assert (one["context"][begin:end], one["offset"] + begin) == ("w6", start)
        assert not {i for i, c in enumerate(context) if c != " "} - covered
        assert any(one["start"] for one in rows)
        ends = [one["offset"] + len(one["context"]) for one in rows]
        assert all(later["offset"] < end for later, end in zip(rows[1:], ends, strict=False))  # they overlap


def test_units_are_the_mark_and_the_words_start_at_the_first_and_end_at_the_last_token(tokenizer) -> None:  # type: ignore[no-untyped-def]
    (row,) = task.expand([example("w8, w15.", "w15")], tokenizer, 64)
    (encoded,) = task.encode(tokenizer, [row], 64)
    tokens = [tokenizer.id_to_token(i) for i in encoded["input_ids"]]
    assert tokens == ["[CLS]", "w2", "w4", "?", "[SEP]", "w8", ",", "w", "##1", "##5", ".", "[SEP]"]
    assert encoded["token_type_ids"] == [0] * 5 + [1] * 7
    assert (row["start"], row["end"]) == (3, 3)
    logits_S2 = torch.stack((torch.arange(12.0), 100 + torch.arange(12.0)), -1)
    expected = [[0, 100], [5, 105], [6, 106], [7, 109], [10, 110]]
    assert task.take(logits_S2, encoded).tolist() == expected
    assert task.take(logits_S2.numpy(), encoded).tolist() == expected


def test_a_long_question_is_cut_and_leaves_room_for_the_text(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = task.expand([example("w8 w6 w10", "w6", question="w2 " * 50)], tokenizer, 16)
    encoded = task.encode(tokenizer, rows, 16)
    assert all(len(one["input_ids"]) <= 16 for one in encoded)
    assert [one["context"] for one in rows if one["start"]] == ["w8 w6 w10"]


def test_a_student_whose_tokens_are_shorter_loses_the_last_words_and_their_answers(tokenizer) -> None:  # type: ignore[no-untyped-def]
    (row,) = task.expand([example("w8 w10 w12", "w12", question="w2")], tokenizer, 64)
    (cut,) = task.encode(tokenizer, [row], 6)  # [CLS] w2 [SEP] w8 w10 [SEP]
    assert len(cut["units"]) == 3 and (row["start"], row["end"]) == (3, 3)
    short, whole = torch.randn(3, 2), torch.randn(4, 2)
    stacked = task.stack([short, whole])
    assert stacked.shape == (4, 4)
    loss = task.hard_loss(stacked, [(3, 3), (1, 2)])
    assert loss.item() == pytest.approx(-(whole.log_softmax(0)[[1, 2], [0, 1]]).mean().item(), rel=1e-5)
    assert task.hard_loss(stacked, [None, None]).item() == 0


def words_of(text: str) -> list[str]:
    """What the SQuAD 2.0 script compares, for the words of these tests."""
    return [word for word in text.lower().replace(".", "").replace(",", "").split() if word not in ("a", "an", "the")]


def squad_f1(gold: str, found: str) -> float:
    """From precision and recall of the words, matched one by one."""
    left, hits = words_of(gold), 0
    for word in words_of(found):
        if word in left:
            left.remove(word)
            hits += 1
    if not words_of(gold) or not words_of(found):
        return float(words_of(gold) == words_of(found))
    precision, recall = hits / len(words_of(found)), hits / len(words_of(gold))
    return 2 * precision * recall / (precision + recall) if hits else 0.0


@pytest.mark.parametrize(
    ("found", "gold", "expected"),
    [
        ("The Broncos!", "broncos", 1.0),
        ("Denver Broncos", "broncos", 2 / 3),
        ("in March of 1974", "March 1974", 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("the", "a", 1.0),  # both are nothing after normalisation
        ("", "1974", 0.0),
        ("state-of-the-art", "state of the art", 0.0),  # marks go without leaving a space
    ],
)
def test_overlap_of_two_answers(found: str, gold: str, expected: float) -> None:
    assert task.overlap(found, gold) == pytest.approx(expected)


def random_case(seed: int, unanswerable: bool):  # type: ignore[no-untyped-def]
    chance, numbers = random.Random(seed), np.random.default_rng(seed)
    rows, outputs = [], []
    for name in range(60):
        words = [chance.choice(["the", "Red", "red,", "barn", "a", "door."]) for _ in range(12)]
        context = " ".join(words)
        first = chance.randrange(11)
        answers = [" ".join(words[first : first + 2])] if not unanswerable or chance.random() < 0.6 else []
        one = example(context, *answers, name=str(name))
        for _ in range(chance.randint(1, 2)):
            rows.append({**one, "offset": 0})
            outputs.append(numbers.normal(size=(1 + len(task._text.words(context)), 2)))
    return rows, outputs


@pytest.mark.parametrize("unanswerable", [False, True])
def test_scores_are_squads_over_a_slow_search(unanswerable: bool) -> None:
    rows, outputs = random_case(1, unanswerable)
    answers: dict[str, str] = {}
    for name in {row["id"] for row in rows}:
        best, none = (-np.inf, ""), np.inf
        for row, output in zip(rows, outputs, strict=True):
            if row["id"] != name:
                continue
            none = min(none, output[0, 0] + output[0, 1])
            spans = task._text.words(row["context"])
            for i in range(1, len(output)):
                for j in range(i, min(len(output), i + 30)):
                    text = row["context"][spans[i - 1][0] : spans[j - 1][1]]
                    best = max(best, (output[i, 0] + output[j, 1], text))
        answers[name] = "" if unanswerable and none > best[0] else best[1]
    exact, f1 = [], []
    for row in {row["id"]: row for row in rows}.values():
        gold = [text for text in row["answers"]["text"] if words_of(text)] or [""]
        exact.append(max(words_of(text) == words_of(answers[row["id"]]) for text in gold))
        f1.append(max(squad_f1(text, answers[row["id"]]) for text in gold))
    found = task.metrics(outputs, rows)
    assert found["exact_match"] == pytest.approx(np.mean(exact))
    assert found["f1"] == pytest.approx(np.mean(f1))
    assert 0 < found["exact_match"] < found["f1"] < 1  # the case tells both apart


def test_agreement_is_over_spans() -> None:
    one = np.zeros((5, 2))
    one[2, 0] = one[3, 1] = 4.0
    same, none = one * 2 + 1, np.zeros((5, 2))
    none[0] = 9.0
    assert task.agree([one, one], [same, none]).tolist() == [1.0, 0.0]
    assert task.agree([none], [none + one]).tolist() == [1.0]


def test_an_answer_counts_characters_of_the_whole_text() -> None:
    row = {**example("the red barn", "red"), "offset": 100}
    output = np.full((4, 2), -9.0)
    output[2, 0] = output[2, 1] = 9.0
    best = task.answer(output, row, [])[0]
    assert (best["text"], best["start"], best["end"]) == ("red", 104, 107)
    assert best["score"] == pytest.approx(1.0, abs=1e-6)
    output[0] = 30.0
    assert task.answer(output, row, [])[0]["text"] == ""


def test_questions_on_one_text_stay_together() -> None:
    one, other = example("w2 w4", "w2", name="a"), example("w2 w4", "w4", question="w6?", name="b")
    assert task.group_text(one) == task.group_text(other)
    assert task.sample_text(one) != task.sample_text(other)


@pytest.mark.parametrize(
    "answers", [{"text": ["w4"], "answer_start": [0]}, {"text": ["w4"]}, {"text": [""], "answer_start": [0]}, ["w4"]]
)
def test_answers_that_do_not_stand_there_are_refused(answers: object) -> None:
    with pytest.raises(BadInput, match="answer"):
        task.example({"question": "w2?", "context": "w2 w4", "answers": answers}, [])


def test_a_model_without_token_types_or_of_another_kind_is_refused() -> None:
    from transformers import BertConfig, DistilBertConfig

    assert task.labels(BertConfig(architectures=["BertForQuestionAnswering"]), None) == []
    with pytest.raises(BadInput, match="takes no token_type_ids"):
        task.labels(DistilBertConfig(architectures=["DistilBertForQuestionAnswering"]), None)
    with pytest.raises(BadInput, match="not a question-answering model"):
        task.labels(BertConfig(architectures=["BertForSequenceClassification"]), None)
