"""Learning without forgetting: rows from before hold a student to what it said, and the table tells what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _language import LINES, model_of, tokenizer
from _material import write_csv
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from edgekd import cli, pipeline, recipe
from edgekd.data.stage import read_split
from edgekd.distill import replay, stage, trainer
from edgekd.errors import BadInput
from edgekd.tasks import text_classification as task

pytestmark = pytest.mark.slow  # models are trained to forget: half a minute
NEW_WORDS = {"fruit": "alpha gamma kappa", "metal": "omega sigma delta"}  # "river" does not occur: it is forgotten


def new_rows(count: int, seed: int) -> list[tuple[str, str]]:
    chance = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = list(NEW_WORDS)[number % 2]
        words = [*chance.choice(NEW_WORDS[label].split(), 2), *chance.choice("one two three four five".split(), 3)]
        found.append((" ".join(chance.permutation(words)), label))
    return found


@pytest.fixture(scope="module")
def continual(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> recipe.Recipe:
    """A new domain for a model that knows the tiny task."""
    folder = tmp_path_factory.mktemp("new")
    data = {
        "train": str(write_csv(folder / "train.csv", new_rows(120, 1))),
        "test": str(write_csv(folder / "test.csv", new_rows(40, 2))),
        "max_length": 16,
        "replay": [{"name": "old", "train": f"{tiny.folder}/train.csv", "test": f"{tiny.folder}/test.csv"}],
    }
    distill = {
        "student": {"model": f"{tiny.folder}/teacher"}, "max_steps": 100, "batch_size": 16, "learning_rate": 5e-3,
        "alpha": 1.0, "temperature": 1.0, "evaluate_every": 100, "replay": {"share": 0.5},
    }  # fmt: skip
    sections = {"teacher": {"model": f"{tiny.folder}/teacher"}, "data": data, "distill": distill}
    return recipe.parse(json.dumps(sections | {"export": {"targets": ["onnx"]}}))


@pytest.fixture(scope="module")
def learned(continual: recipe.Recipe, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    return pipeline.run(continual, tmp_path_factory.mktemp("run"), until="distill")


def retention(result: pipeline.Result, kind: str = "student") -> dict[str, dict[str, Any]]:
    return {row["data"]: row for row in result.facts(f"distill-{kind}")["retention"]}  # type: ignore[index]


def test_a_student_that_replays_forgets_less(learned: pipeline.Result) -> None:
    mine, without = retention(learned), retention(learned, "baseline")
    assert list(mine) == ["new", "old"] and mine["old"]["rows"] == 90
    assert mine["old"]["before"] == without["old"]["before"] and mine["old"]["before"]["accuracy"] > 0.95
    assert mine["new"]["before"]["accuracy"] < 0.9
    assert min(mine["new"]["after"]["accuracy"], without["new"]["after"]["accuracy"]) > 0.9, "both have learned it"
    assert without["old"]["after"]["accuracy"] < 0.9, "what is not replayed is forgotten"
    assert mine["old"]["after"]["accuracy"] > 0.95
    told = {one["name"]: one for one in learned.facts("distill-student")["terms"]}  # type: ignore[index]
    assert told["replay"]["weight"] == 1.0 and 0 < told["replay"]["gradient_share"] < 1


def test_the_table_is_what_a_reader_counts_himself(learned: pipeline.Result, tiny: Any) -> None:
    def accuracy(folder: Path, table: Path) -> float:
        net = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        words, hits = AutoTokenizer.from_pretrained(folder), []
        for line in table.read_text().splitlines()[1:]:
            text, label = line.rsplit(",", 1)
            with torch.no_grad():
                found = net(**words(text, return_tensors="pt", truncation=True, max_length=16)).logits.argmax().item()
            hits.append(net.config.id2label[found] == label)
        return sum(hits) / len(hits)

    files = {"new": Path(learned.recipe.data.test or ""), "old": tiny.folder / "test.csv"}
    after = learned.steps["distill-student"].path / "model"
    for name, file in files.items():
        row = retention(learned)[name]
        assert row["before"]["accuracy"] == pytest.approx(accuracy(tiny.folder / "teacher", file))
        assert row["after"]["accuracy"] == pytest.approx(accuracy(after, file))
    test = learned.facts("distill-student")["metrics"]["test"]  # type: ignore[index]
    assert retention(learned)["new"]["after"]["accuracy"] == test["accuracy"]


def test_the_command_shows_the_table(learned: pipeline.Result, capsys: pytest.CaptureFixture[str]) -> None:
    cli._kept(learned.recipe, {step: made.facts for step, made in learned.steps.items()})
    said = " ".join(capsys.readouterr().out.split())
    assert "what was kept" in said and f"{retention(learned)['old']['rows']}" in said and "accuracy before" in said
    cli._kept(learned.recipe, {"data": {}})
    assert capsys.readouterr().out == ""


def test_a_replayed_row_pulls_to_what_was_said_of_it(learned: pipeline.Result, tiny: Any, tmp_path: Path) -> None:
    made, data = learned.recipe, learned.steps["data"]
    start = _start(made, data, tmp_path)
    rows = read_split(data.path, "train")
    new = trainer.Rows(task, task.encode(start.processor, rows, 16), task.targets(rows), 0)
    past = replay.Past.of(made, task, data, start, read_split(data.path, "test"), 64)
    assert past.replays == 8
    both, ways = past.join(new, {}, 20, [], tmp_path)
    assert len(both) == len(new) + 160
    net = AutoModelForSequenceClassification.from_pretrained(tiny.folder / "teacher", dtype=torch.float32).eval()
    with torch.no_grad():
        net.classifier.weight += 0.3
    learner = trainer.Learner(net, {})
    picked = [3, len(new) + 5, 7, len(new) + 9, len(new) + 6]
    inputs = both.collate(picked)
    numbers = inputs.pop("rows").tolist()
    assert numbers == [3, 7]
    _, found = ways["measure"](learner, both, [], inputs, numbers, 1.0, 2.0)
    old = [row["text"] for row in (read_split(data.path, "replay"))]
    order = sorted(np.random.default_rng(0).permutation(len(old))[:160].tolist())
    soft = []
    for number in (5, 9, 6):
        ids = torch.tensor([task.encode(start.processor, [{"text": old[order[number]]}], 16)[0]["input_ids"]])
        with torch.no_grad():
            then = start.model.eval()(ids).logits / 2
        now = net(ids).logits / 2
        soft.append(4 * F.kl_div(now.log_softmax(-1), then.softmax(-1), reduction="sum"))
    torch.testing.assert_close(found["replay"][1], torch.stack(soft).mean(), atol=1e-5, rtol=1e-4)
    labels = torch.tensor([rows[3]["label"], rows[7]["label"]])
    logits = [net(torch.tensor([new.encoded[i]["input_ids"]])).logits for i in (3, 7)]
    torch.testing.assert_close(found["hard"][1], F.cross_entropy(torch.cat(logits), labels), atol=1e-5, rtol=1e-4)


def _start(made: recipe.Recipe, data: Any, work: Path) -> stage.Start:
    teacher = AutoModelForSequenceClassification.from_pretrained(made.teacher.model, dtype=torch.float32)
    return stage.begin(made, task, data, teacher, work)


@pytest.mark.parametrize(
    ("share", "size", "each"), [(0, 8, 0), (0.3, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.3, 1, None)]
)
def test_a_batch_has_room_for_both(continual: recipe.Recipe, share: float, size: int, each: int | None) -> None:
    made = recipe.parse(recipe.dump(continual), overrides=[f"distill.replay.share={share}"])
    past = replay.Past(made, task, None, None, {}, {}, 64)  # type: ignore[arg-type]
    if each is None:
        with pytest.raises(BadInput, match="no room"):
            past.each(size)
    else:
        assert past.each(size) == each


@pytest.mark.parametrize("group", [1, 2])
def test_every_batch_has_its_share_from_before(group: int) -> None:
    fresh = trainer.LengthGrouped([5] * 50, 8, 3, group)
    beside = replay.Beside(fresh, 50, 20, 4)
    epochs = []
    for epoch in (0, 1):
        beside.set_epoch(epoch)
        order = list(beside)
        assert len(order) == len(beside) == 50 + 7 * 4
        for start in range(0, len(order), 12):
            batch = order[start : start + 12]
            assert sum(row >= 50 for row in batch) == 4 and len(set(batch)) == len(batch)
            assert all(row % group or row + group - 1 in batch for row in batch)
        assert sorted(row for row in order if row < 50) == list(range(50))
        assert {row for row in order if row >= 50} == set(range(50, 70)), "all are met"
        epochs.append(order)
    assert epochs[0] != epochs[1]


def language(folder: Path, user: str, **more: Any) -> recipe.Recipe:
    distill = {
        "student": {"model": str(folder)}, "lora": {"rank": 4}, "max_steps": 25, "batch_size": 8, "alpha": 1.0,
        "learning_rate": 1e-2, "temperature": 1.0, "evaluate_every": 100, "replay": {"share": 0.5, "weight": 2.0},
    }  # fmt: skip
    data = {
        "train": str(folder / f"{user}.jsonl"),
        "max_length": 48,
        "replay": [{"name": "base", "train": str(folder / "base.jsonl"), "test": str(folder / "held.jsonl")}],
    }
    sections = {
        "task": "text-generation", "teacher": {"model": str(folder)}, "data": data, "teach": {"tokens": "top:400"},
        "distill": distill | more, "quantize": {"schemes": ["w8"]}, "export": {"targets": ["onnx"]},
    }  # fmt: skip
    return recipe.parse(json.dumps(sections))


def write_base(folder: Path, lines: list[str]) -> None:
    """A language model that has learned something that can be forgotten."""
    net = model_of("qwen3", tokenizer(folder), initializer_range=0.02).train()
    words = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(words(" ".join(lines * 4))["input_ids"])
    rows = ids[: len(ids) // 40 * 40].reshape(-1, 40)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    for step in range(60):
        some = rows[torch.arange(16 * step, 16 * step + 16) % len(rows)]
        net(input_ids=some, labels=some).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    net.save_pretrained(folder)


def test_each_user_has_an_adapter_and_the_base_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'edgekd[llm]')")
    folder = tmp_path / "base"
    texts = {"base": LINES[:80], "held": LINES[80:100], "anna": LINES[100:140], "ben": LINES[140:180]}
    texts |= {name: [one[::-1].upper() for one in texts[name]] for name in ("anna", "ben")}
    write_base(folder, texts["base"])
    for name, lines in texts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": one * 2}) + "\n" for one in lines))
    anna = pipeline.run(language(folder, "anna"), tmp_path / "run", until="distill")
    mine, without = retention(anna), retention(anna, "baseline")
    assert mine["new"]["after"]["perplexity"] < 0.7 * mine["new"]["before"]["perplexity"]
    before, kept, gone = (
        np.log(one["perplexity"]) for one in (mine["base"]["before"], mine["base"]["after"], without["base"]["after"])
    )
    assert kept - before < 0.5 * (gone - before), (before, kept, gone)

    step = anna.steps["distill-student"].path
    assert (step / "adapter" / "adapter_model.safetensors").is_file() and (step / "replay").is_dir()
    for which, model in (("before", folder), ("after", step / "model")):
        net, nats, count = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), 0.0, 0
        words = AutoTokenizer.from_pretrained(folder)
        for row in read_split(anna.steps["data"].path, "replay_test"):
            ids = torch.tensor([words(row["text"])["input_ids"] + ([words.eos_token_id] if row["end"] else [])])
            with torch.no_grad():
                nats += float(F.cross_entropy(net(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
        assert mine["base"][which]["perplexity"] == pytest.approx(np.exp(nats / count), rel=1e-4)

    def asked(*_: Any) -> None:
        raise AssertionError("what the base says of its own rows is known from the first user")

    monkeypatch.setattr(replay.Past, "_ask", asked)
    ben = pipeline.run(language(folder, "ben", baseline=False), tmp_path / "run", until="distill")
    assert not (ben.steps["distill-student"].path / "replay").exists()
    assert retention(ben)["base"]["before"] == mine["base"]["before"]


def test_what_is_held_out_is_not_replayed(continual: recipe.Recipe, tiny: Any, tmp_path: Path) -> None:
    old = [("a red apple", "fruit"), ("much copper", "metal"), ("on the thames", "river")]
    known = new_rows(40, 2)[0]
    write_csv(tmp_path / "train.csv", [*old, known])
    write_csv(tmp_path / "test.csv", old[:1])
    sets = [{"name": name, "train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv")} for name in "ab"]
    made = continual.model_dump(mode="json")
    made["data"]["replay"] = sets
    data = pipeline.run(recipe.parse(json.dumps(made)), tmp_path / "run", until="data").steps["data"].path
    rows = [(row["text"], row["set"]) for row in read_split(data, "replay")]
    assert rows == [(text, name) for name in "ab" for text, _ in old[1:]]
    assert [row["set"] for row in read_split(data, "replay_test")] == ["a", "b"]


def test_what_cannot_be_is_refused(continual: recipe.Recipe) -> None:
    with pytest.raises(BadInput, match="knows 3 labels"):
        replay._same_labels(str(continual.teacher.model), ["fruit", "metal"])
    replay._same_labels(str(continual.teacher.model), ["fruit", "metal", "river"])
    made = continual.model_dump(mode="json")
    again = made["data"]["replay"][0]
    for sets, why in (
        ({"data": {**made["data"], "replay": [again, again]}}, "one name"),
        ({"data": {**made["data"], "replay": [{**again, "name": "new"}]}}, "one name"),
        ({"distill": {**made["distill"], "on_policy": {}}}, "past what is replayed"),
        ({"distill": {**made["distill"], "student": {}}}, "replay: needs a student"),
    ):
        with pytest.raises(BadInput, match=why):
            recipe.parse(json.dumps(made | sets))
