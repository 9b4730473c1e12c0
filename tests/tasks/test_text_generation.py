"""Texts, prompts and chats as token rows: what is learned, and what the outputs say, against transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _language import END, EXTRA, LINES, student

from edgekd.errors import BadInput
from edgekd.tasks import text_generation as task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return task.processor(folder)


def learned(processor: Any, encoded: Any) -> str:
    return str(
        processor.decode([t for t, counts in zip(encoded["input_ids"], encoded["learn"], strict=True) if counts])
    )


def test_a_long_text_becomes_rows_that_fit_and_lose_nothing(processor: Any) -> None:
    text = " ".join(LINES)
    rows = task.expand([task.example({"text": text}, [])], processor, 32)
    assert "".join(row["text"] for row in rows) == text
    assert [row["end"] for row in rows] == [False] * (len(rows) - 1) + [True]
    encoded = task.encode(processor, rows, 32)
    assert max(len(one["input_ids"]) for one in encoded) <= 32
    assert encoded[-1]["input_ids"][-1] == processor.eos_token_id != encoded[0]["input_ids"][-1]


def test_a_file_is_cut_into_whole_lines() -> None:
    text = "".join(f"{'word ' * 40}{i}\n" for i in range(100))
    found = task.blocks(text)
    assert "".join(one["text"] for one in found) == text and len(found) > 3
    assert all(one["text"].endswith("\n") and len(one["text"]) < task.BLOCK + 250 for one in found)


def test_only_the_assistants_words_are_learned(processor: Any) -> None:
    turns = [
        {"role": "user", "content": "please tell me"},
        {"role": "assistant", "content": "about the old"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "and new"},
    ]
    (encoded,) = task.encode(processor, [task.example({"messages": turns}, [])], 500)
    assert learned(processor, encoded) == f"about the old{EXTRA}\nand new{EXTRA}\n"
    whole = processor.apply_chat_template(turns, tokenize=False)
    assert processor.decode(encoded["input_ids"]) == whole
    (pair,) = task.encode(processor, [{"prompt": "please tell me", "response": "about the old"}], 500)
    assert learned(processor, pair) == f"about the old{EXTRA}\n"
    asked = task.prompt(processor, {"prompt": "please tell me", "response": "about the old"}, 500)
    assert processor.decode(asked).endswith("assistant\n")


def test_without_a_template_the_response_ends_with_the_end_token(processor: Any) -> None:
    plain = task.processor(Path(processor.name_or_path))
    plain.chat_template = None
    (encoded,) = task.encode(plain, [{"prompt": "tell me ", "response": "more"}], 500)
    assert learned(plain, encoded) == f"more{EXTRA}"
    with pytest.raises(BadInput, match="no chat template"):
        task.encode(plain, [{"messages": [{"role": "user", "content": "a"}]}], 500)


@pytest.mark.parametrize("row", [{}, {"text": "  "}, {"messages": [{"role": "user"}]}, {"messages": ["hello"]}])
def test_rows_that_are_none_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        task.example(row, [])


def test_perplexity_is_that_of_transformers(folder: Path, processor: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    (encoded,) = task.encode(processor, [{"text": LINES[0] + LINES[1], "end": False}], 100)
    ids = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        found = model(input_ids=ids, labels=ids)
    for logits in (found.logits[0], found.logits[0].numpy()):
        output = np.asarray(task.take(logits, encoded))
        told = task.metrics([output], [])
        assert told["perplexity"] == pytest.approx(math.exp(float(found.loss)), rel=1e-4)
        assert told["likelihood"] == pytest.approx(1 / told["perplexity"])
        likeliest = found.logits[0, :-1].argmax(-1).numpy()
        assert told["token_accuracy"] == pytest.approx((likeliest == ids[0, 1:].numpy()).mean())
    assert task.metrics([output], [], [output])["teacher_agreement"] == 1.0
    assert task.agree([output], [output]).tolist() == [1.0] and task.distance([output], [output]) == 0.0


def test_a_classifier_is_no_teacher_of_text() -> None:
    class Config:
        architectures = ("BertForSequenceClassification",)

    with pytest.raises(BadInput, match="not a causal language model"):
        task.labels(Config(), None)
    assert END
