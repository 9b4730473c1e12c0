"""Pairs of texts as rows of two halves: what is learned, and what is said of what was written, against transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _pairs import END, KINDS, PAIRS, folder

from edgekd.distill import tokens as distilled
from edgekd.distill import trainer
from edgekd.errors import BadInput
from edgekd.recipe import Term
from edgekd.tasks import text2text_generation as task
from edgekd.teach import writing
from edgekd.teach.transformers import inputs_of, predict


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM

    path = folder(tmp_path_factory.mktemp(request.param), request.param)
    return AutoModelForSeq2SeqLM.from_pretrained(path).eval(), task.processor(path)


def test_a_pair_is_a_source_and_a_target_one_place_later(made: tuple[Any, Any]) -> None:
    _, processor = made
    (one,) = task.encode(processor, [task.example(PAIRS[0], [])], 48)
    assert processor.decode(one["input_ids"]) == PAIRS[0]["source"] + END
    assert processor.decode(one["labels"]) == PAIRS[0]["target"] + END
    assert one["decoder_input_ids"] == [0, *one["labels"][:-1]] and task.right(one) == one["labels"]
    (cut,) = task.encode(processor, [PAIRS[0]], 4)
    assert len(cut["labels"]) == 4 == len(cut["input_ids"]) and cut["input_ids"][-1] == processor.eos_token_id
    (bare,) = task.encode(processor, [task.example({"source": "please"}, [])], 48)
    assert task.places(bare) == [] and bare["decoder_input_ids"] == [0]


def test_the_end_of_a_target_is_learned_even_where_a_tokenizer_adds_none(made: tuple[Any, Any], tmp_path: Path) -> None:
    _, processor = made
    processor.save_pretrained(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (one,) = task.encode(task.processor(tmp_path), [PAIRS[0]], 48)
    assert processor.decode(one["labels"]) == PAIRS[0]["target"] + END
    assert processor.decode(one["input_ids"]) == PAIRS[0]["source"]


def test_perplexity_is_that_of_transformers_alone_and_in_a_batch(made: tuple[Any, Any]) -> None:
    model, processor = made
    rows = task.encode(processor, PAIRS[:5], 48)
    outputs = predict(model, task, rows, 0)
    losses, right, sure = [], [], []
    for one in rows:
        ids, labels = torch.tensor([one["input_ids"]]), torch.tensor([one["labels"]])
        with torch.no_grad():
            found = model(input_ids=ids, labels=labels)
        losses.append(float(found.loss) * labels.numel())
        right += labels[0].tolist()
        sure += found.logits[0].argmax(-1).tolist()
    told = task.metrics([one.numpy() for one in outputs], [])
    assert told["perplexity"] == pytest.approx(math.exp(sum(losses) / len(right)), rel=1e-4)
    assert told["token_accuracy"] == pytest.approx(np.mean(np.array(right) == np.array(sure)))


def test_head_and_hidden_states_make_the_models_own_logits(made: tuple[Any, Any]) -> None:
    """T5 scales, BART and Marian add a bias: what the loss over tokens sees must be what the model says."""
    model, processor = made
    inputs = inputs_of(model, task.encode(processor, PAIRS[:4], 48), 0, task.INPUTS)
    with torch.no_grad():
        head, hidden = distilled.head(model), distilled.hidden(model, inputs)
        mine = head.logits(hidden.flatten(0, 1), head.weight, head.bias)
        torch.testing.assert_close(mine.reshape_as(wanted := model(**inputs).logits), wanted, rtol=1e-4, atol=1e-4)


def test_the_loss_is_that_of_plain_autograd(made: tuple[Any, Any]) -> None:
    model, processor = made
    rows = task.encode(processor, PAIRS[:4], 48)
    held = distilled.TokenRows(task, rows, [None] * 4, 0, None, vocabulary=len(processor))
    inputs = held.collate([2, 0])
    numbers = inputs.pop("rows").tolist()
    learner = distilled.TokenLearner(model, {})
    lessons = trainer.lessons_of([Term(loss="forward-kl", pool="output")], lambda term: [("logits", "logits")])
    _, found = distilled.values(learner, held, lessons, inputs, numbers, 1.0, 1.0)
    wanted = [-predict(model, task, [rows[i]], 0)[0][:, 0] for i in numbers]
    assert float(found["tokens"][1]) == pytest.approx(float(torch.cat(wanted).mean()), rel=1e-4)


def test_what_is_written_is_what_the_model_generates_alone(made: tuple[Any, Any]) -> None:
    model, processor = made
    rows = task.encode(processor, PAIRS[:3], 48)
    for beams in (1, 3):
        texts = writing.write(model, processor, rows, 0, 12, beams)
        for one, text in zip(rows, texts, strict=True):
            ids = model.generate(torch.tensor([one["input_ids"]]), num_beams=beams, do_sample=False, max_new_tokens=12)
            assert processor.decode(ids[0], skip_special_tokens=True).strip() == text
    assert writing.beams("greedy") == 1 and writing.beams("beam:4") == 4


def test_answers_of_an_interrupted_step_are_kept(made: tuple[Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    model, processor = made
    asked: list[int] = []

    def answer(model: Any, processor: Any, encoded: Any, *rest: Any) -> list[str]:
        asked.append(len(encoded))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ["answer\u2028"] * len(encoded)

    monkeypatch.setattr(writing, "write", answer)
    call = ({"train": PAIRS[:6]}, model, task, processor, 0, 48, "greedy", 2, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        writing.rewritten(*call)
    with (tmp_path / "scratch" / "train-answers.jsonl").open("a") as store:
        store.write('["torn')
    made_now = writing.rewritten(*call)
    assert asked == [2, 2, 2, 2] and {one["target"] for one in made_now["train"]} == {"answer\u2028"}
    assert [one["source"] for one in writing.taught(tmp_path, tmp_path, "train")] == [p["source"] for p in PAIRS[:6]]


def test_texts_are_judged() -> None:
    rows = [{"target": "the old cat sat on the mat ."}, {"target": "a b c d"}]
    same = task.written([one["target"] for one in rows], rows)
    assert same["rouge_l"] == same["exact_match"] == 1.0
    other = task.written(["The cat sat on a mat.", "x y"], rows)
    # Words: the cat sat on a mat . (7) against the old cat sat on the mat . (8), 6 in common
    assert other["rouge_l"] == pytest.approx(2 * 6 / 15 / 2) and other["exact_match"] == 0.0
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (pip install 'edgekd[text]')")
    assert same["bleu"] == pytest.approx(100.0)
    wanted = sacrebleu.corpus_bleu(["The cat sat on a mat.", "x y"], [[one["target"] for one in rows]]).score
    assert other["bleu"] == pytest.approx(wanted)


def test_other_models_are_no_teachers_of_pairs() -> None:
    class Config:
        architectures = ("Qwen3ForCausalLM",)
        is_encoder_decoder = False

    with pytest.raises(BadInput, match="not a model that writes one text from another"):
        task.labels(Config(), None)
    Config.architectures, Config.is_encoder_decoder = ("T5ForConditionalGeneration",), True  # type: ignore[assignment]
    with pytest.raises(BadInput, match="no decoder_start_token_id"):
        task.labels(Config(), None)
    with pytest.raises(BadInput, match="no source text"):
        task.example({"source": " ", "target": "x"}, [])
