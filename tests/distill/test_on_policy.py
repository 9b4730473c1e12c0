"""A student learns on what it writes itself: nearer to its teacher there, refused where it cannot be, resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _language import LINES, model_of, tokenizer

from edgekd import artifact, pipeline, recipe
from edgekd.distill import on_policy, stage, student, writers
from edgekd.errors import BadInput, Environment
from edgekd.tasks import text_generation as task
from edgekd.teach.transformers import pad

trl = pytest.importorskip("trl", reason="trl is not installed (pip install 'edgekd[llm]')")

WRITES = {"steps": 60, "share": 0.75, "max_new_tokens": 12, "learning_rate": 3e-3, "evaluate_every": 30, "samples": 16}
SECTIONS: dict[str, Any] = {
    "task": "text-generation",
    "distill": {
        "student": {"layers": 1}, "max_steps": 10, "batch_size": 8, "learning_rate": 3e-3, "temperature": 1.0,
        "evaluate_every": 100, "checkpoint_every": 10, "baseline": False, "on_policy": WRITES,
    },
    "export": {"targets": ["onnx"]},
    "quantize": {"schemes": ["w8"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has learned a little, and its text."""
    folder = tmp_path_factory.mktemp("on-policy")
    vocabulary = tokenizer(folder / "teacher")
    model = model_of("qwen3", vocabulary, initializer_range=0.05).train()
    encoded = task.encode(task.processor(folder / "teacher"), [{"text": line} for line in LINES], 48)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(100):
        batch = pad([encoded[(16 * step + i) % len(encoded)] for i in range(16)], 0)
        model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder / "teacher")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return folder


def recipe_of(folder: Path, *sets: str, **sections: Any) -> recipe.Recipe:
    more = {
        "teacher": {"model": str(folder / "teacher")},
        "data": {"train": str(folder / "text.jsonl"), "max_length": 32},
    }
    return recipe.parse(json.dumps(SECTIONS | more | sections), overrides=sets)


@pytest.fixture(scope="module")
def taught(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, artifact.Artifact]:
    return pipeline.run(recipe_of(folder), tmp_path_factory.mktemp("run"), until="teach").steps


def run(made: recipe.Recipe, taught: dict[str, artifact.Artifact], out: Path, **how: Any) -> artifact.Facts:
    """The student's step; the baseline's for a recipe that has one."""
    out.mkdir(exist_ok=True)
    row = pipeline.ON_POLICY if made.distill.on_policy else pipeline.DISTILL
    view: Any = recipe.View(made, row.reads)
    inputs = artifact.Inputs(
        {name: taught[name] for name in ("data", "teach")},
        {"kind": "baseline" if made.distill.baseline else "student"},
        **how,
    )
    return (on_policy if made.distill.on_policy else stage).run(view, inputs, out)


@pytest.fixture(scope="module")
def made(folder: Path, taught: dict[str, artifact.Artifact], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The student of both phases, of the first alone, and the facts of the former."""
    out = tmp_path_factory.mktemp("students")
    facts = run(recipe_of(folder), taught, out / "both")
    run(recipe_of(folder, "distill.on_policy=null"), taught, out / "first")
    return facts, out / "both", out / "first"


@torch.no_grad()
def written(model: Any, prompt: list[int], more: int, chance: torch.Generator) -> list[int]:
    """One token after the other, drawn from the model's distribution."""
    ids = list(prompt)
    while len(ids) < len(prompt) + more and ids[-1] != 2:
        p = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        ids.append(int(torch.multinomial(p, 1, generator=chance)))
    return ids


@torch.no_grad()
def plain_reverse_kl(model: Any, teacher: Any, prompts: list[list[int]]) -> float:
    """sum over the vocabulary of q (log q - log p), mean over the tokens that the student writes."""
    chance, found = torch.Generator().manual_seed(7), []
    for prompt in prompts:
        ids = written(model, prompt, 12, chance)
        log_q, log_p = (
            net(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for net in (model, teacher)
        )
        found.append((log_q.exp() * (log_q - log_p)).sum(-1))
    return float(torch.cat(found).mean())


def test_what_a_student_writes_comes_nearer_to_its_teacher(folder: Path, taught: Any, made: Any) -> None:
    from transformers import AutoModelForCausalLM

    facts, both, first = made
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    processor = task.processor(folder / "teacher")
    prompts = on_policy.prompts(task, processor, stage.read_split(taught["data"].path, "test") * 2, recipe_of(folder))
    before, after = (
        plain_reverse_kl(student.load(out / "model", AutoModelForCausalLM).eval(), teacher, prompts)
        for out in (first, both)
    )
    assert after < 0.85 * before, (before, after)
    told = facts["on_policy"]
    assert told["kept"] == "after" and told["rows"] == facts["rows"]["train"] and told["without_room"] == 0
    for name in ("validation", "test"):
        assert told["after"][name]["reverse_kl"] < told["before"][name]["reverse_kl"]
    assert told["before"]["test"]["reverse_kl"] == pytest.approx(before, rel=0.35)  # other draws, other tokens
    assert facts["metrics"]["test"] == told["after"]["test"]
    assert [entry["step"] for entry in told["history"] if "eval_reverse_kl" in entry] == [0, 30, 60]


def test_the_first_phase_is_that_of_a_recipe_without_a_second(made: Any) -> None:
    facts, both, first = made
    assert (both / "history.json").read_bytes() == (first / "history.json").read_bytes()
    told = facts["on_policy"]["before"]["validation"]
    assert told["perplexity"] == pytest.approx(json.loads((first / "history.json").read_text())[-1]["eval_perplexity"])
    assert (both / "model" / "model.safetensors").read_bytes() != (first / "model" / "model.safetensors").read_bytes()


def test_the_better_of_both_is_kept(folder: Path, taught: Any, made: Any, tmp_path: Path) -> None:
    worse = recipe_of(folder, "distill.on_policy.steps=2", "distill.on_policy.learning_rate=0.1")
    facts = run(worse, taught, tmp_path / "worse")
    assert facts["on_policy"]["kept"] == "before"
    for name in ("model/model.safetensors", "test_logits.safetensors"):
        assert (tmp_path / "worse" / name).read_bytes() == (made[2] / name).read_bytes()
    assert (
        facts["on_policy"]["after"]["validation"]["reverse_kl"]
        > facts["on_policy"]["before"]["validation"]["reverse_kl"]
    )


@pytest.mark.parametrize(("kind", "beta"), [("forward-kl", 0.0), ("reverse-kl", 1.0), ("jensen-shannon", 0.5)])
def test_the_divergence_is_trls_and_padding_does_not_count(kind: str, beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    mine, theirs = model_of("qwen3", 400, seed=1), model_of("qwen3", 400, seed=2)
    texts = [list(range(5, 5 + n)) for n in (9, 4, 7)]
    asked, logits, labels = 3, [], []
    for ids in texts:  # one at a time, without padding
        pair = [net(input_ids=torch.tensor([ids])).logits[0, asked - 1 : -1] for net in (mine, theirs)]
        logits.append(pair)
        labels += ids[asked:]
    student_logits, teacher_logits = (torch.cat([pair[k] for pair in logits])[None] for k in (0, 1))
    expected = GKDTrainer.generalized_jsd_loss(student_logits, teacher_logits.detach(), torch.tensor([labels]), beta)
    left, width = [0, 2, 1], 12  # as the student writes: padded on both sides
    batch = {name: torch.zeros(3, width, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full((3, width), -100)
    for row, ids in enumerate(texts):
        some = slice(left[row], left[row] + len(ids))
        batch["input_ids"][row, some], batch["attention_mask"][row, some] = torch.tensor(ids), 1
        batch["labels"][row, left[row] + asked : left[row] + len(ids)] = torch.tensor(ids[asked:])
    found, count = writers.divergence(mine, theirs, batch, kind, 400)
    assert count == len(labels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    wanted = torch.autograd.grad(expected, list(mine.parameters()), allow_unused=True)
    for one, other in zip(torch.autograd.grad(found, list(mine.parameters())), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def stopped(made: recipe.Recipe, taught: Any, out: Path) -> artifact.Facts:
    """The facts of a run that stopped in step 33 of the second phase and went on."""

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, unit: str) -> None:
        if unit == on_policy.UNIT and done == 33:
            raise Stopped

    with pytest.raises(Stopped):
        run(made, taught, out, progress=stop)
    steps: list[int] = []
    facts = run(made, taught, out, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 31 and steps[-1] == 60  # of the second phase alone
    return facts


def test_it_goes_on_where_it_was_stopped(folder: Path, taught: Any, made: Any, tmp_path: Path) -> None:
    facts = stopped(recipe_of(folder), taught, tmp_path / "again")
    for name in ("model/model.safetensors", "test_logits.safetensors", "history.json"):
        assert (tmp_path / "again" / name).read_bytes() == (made[1] / name).read_bytes()
    assert facts["on_policy"]["history"] == made[0]["on_policy"]["history"]


@pytest.mark.slow
def test_with_other_tokens_too(folder: Path, taught: Any, tmp_path: Path) -> None:
    made = recipe_of(folder, *of_its_own(tmp_path / "own"))
    facts, whole = stopped(made, taught, tmp_path / "again"), run(made, taught, tmp_path / "whole")
    one, other = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("again", "whole"))
    assert one == other and facts["on_policy"]["history"] == whole["on_policy"]["history"]


def of_its_own(folder: Path) -> tuple[str, ...]:
    """What a recipe says for a student of another family with tokens of its own, which is written to ``folder``."""
    vocabulary = tokenizer(folder, "llama-bpe", 320)
    model_of("llama", vocabulary, num_hidden_layers=1, initializer_range=0.05).save_pretrained(folder)
    return (f"distill.student.model={folder}", "distill.student.layers=1")


def test_nothing_is_sent(folder: Path, taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import base_trainer

    def send(*_: Any, **__: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr(base_trainer, "send_telemetry", send)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.chdir(tmp_path)
    run(recipe_of(folder, "distill.max_steps=0", "distill.on_policy.steps=1"), taught, tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_rows_of_every_kind_have_a_beginning_that_leaves_room(folder: Path) -> None:
    processor = task.processor(folder / "teacher")
    short, long = "How are you?", " ".join(LINES[:8])
    rows = [
        {"text": long},
        {"prompt": short, "response": "Well."},
        {"prompt": short},
        {"prompt": long, "response": "Well."},
        {"messages": [{"role": "user", "content": short}, {"role": "assistant", "content": "Well."}]},
    ]
    wide = ("data.max_length=48",)
    found = on_policy.prompts(task, processor, rows, recipe_of(folder, *wide))
    assert len(found[0]) == 24 and processor.decode(found[0]) in long  # half of the row
    assert found[1] == found[2] == found[4] and processor.decode(found[1]).endswith("<|im_start|>assistant\n")
    assert found[3] == []
    closer = on_policy.prompts(task, processor, rows, recipe_of(folder, *wide, "distill.on_policy.max_new_tokens=40"))
    assert closer[0] == found[0][:8]
    lines = writers.Lines(task.encode(processor, rows[:3], 48), found[:3], 0)
    batch = lines.collate([{"row": 1}, {"row": 2}, {"row": 0}])
    for row, prompt in enumerate((found[1], found[2], found[0])):
        kept = batch["prompt_attention_mask"][row] == 1
        assert batch["prompts"][row][kept].tolist() == prompt and bool(kept[-1])
    said = batch["labels"][0][batch["labels"][0] >= 0].tolist()
    assert processor.decode(said) == "Well.<|im_end|>\n" and (batch["labels"][1] == -100).all()


def test_refusals_come_with_the_plan(folder: Path, tmp_path: Path) -> None:
    endpoint = {"endpoint": {"base_url": "http://localhost:1/v1", "model": "big"}, "model": str(folder / "teacher")}
    for made, said in (
        (recipe_of(folder, teacher=endpoint), "does not score"),
        (recipe_of(folder, task="text-classification"), "no causal language model"),
        (recipe_of(folder, "distill.on_policy.max_new_tokens=32"), "leave a prompt no room"),
        (recipe_of(folder, "distill.student.vocabulary=1.0"), "has other ids"),
    ):
        with pytest.raises(BadInput, match=said):
            pipeline.plan(made, tmp_path)
    with pytest.raises(BadInput, match="share"):
        recipe_of(folder, "distill.on_policy.share=0")


def test_prompts_without_room_and_a_missing_package_stop_it_before_the_first_phase(
    folder: Path, taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe_of(folder)
    rows = [{"prompt": " ".join(LINES[:4]), "response": "Well."}]
    monkeypatch.setattr(on_policy, "read_split", lambda *_: rows)
    with pytest.raises(BadInput, match=r"no prompt of train leaves room for 12 of data.max_length's 32"):
        run(made, taught, tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[llm\]'"):
        run(made, taught, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_other_tokens_cannot_do_is_refused(folder: Path, taught: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    sets = of_its_own(tmp_path / "own")
    with pytest.raises(BadInput, match=r"its tokens are not the teacher's.*distill.on_policy"):
        run(recipe_of(folder, *sets, "distill.on_policy=null"), taught, tmp_path / "a")
    with pytest.raises(BadInput, match="'skew-kl' is not for a teacher with other tokens"):
        run(recipe_of(folder, *sets, "distill.on_policy.divergence=skew-kl"), taught, tmp_path / "b")
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")))
    with pytest.raises(BadInput, match="not byte-level"):
        writers.check_other_tokens("reverse-kl", task.processor(folder / "teacher"), words)


def test_a_teacher_with_other_tokens_reads_the_text(folder: Path, tmp_path: Path) -> None:
    tokenizer(tmp_path, "llama-bpe", 320)
    mine, theirs = task.processor(tmp_path), task.processor(folder / "teacher")
    said = "{% for one in messages %}{{ one['role'] }}: {{ one['content'] }}\n{% endfor %}"
    theirs.chat_template = said + "{% if add_generation_prompt %}assistant: {% endif %}"
    rows = [{"text": "naïve café, twice a day"}, {"prompt": "How?", "response": "Well, naïvely."}]
    encoded = task.encode(mine, rows, 64)
    begins = on_policy.prompts(task, mine, rows, recipe_of(folder, "data.max_length=64"))
    made = writers.lines(list(zip(rows, encoded, begins, strict=True)), task, mine, theirs, 0)
    assert made.texts[0][0] + made.texts[0][1] == rows[0]["text"] + "<|im_end|>"
    assert made.texts[1] == ("user: How?\nassistant: ", "Well, naïvely.<|im_end|>\n")
    batch = made.collate([{"row": 0}, {"row": 1}])
    for row, (_, said) in enumerate(made.texts):
        learned = batch["labels"][row] != -100
        begin, end = batch["byte_offsets"][row][learned].T.tolist()
        assert begin == [0, *end[:-1]] and end[-1] == len(said.encode())
        assert mine.decode(batch["labels"][row][learned]) == said and not batch["byte_offsets"][row][~learned].any()


def test_only_the_student_has_the_second_phase(folder: Path) -> None:
    made = recipe_of(folder, "distill.baseline=true")
    rows = {step.id: step.row for step in pipeline.steps(made) if step.stage == "distill"}
    assert rows == {"distill-student": pipeline.ON_POLICY, "distill-baseline": pipeline.DISTILL}
    without = {step.id: step.row for step in pipeline.steps(recipe_of(folder, "distill.on_policy=null"))}
    assert without["distill-student"] == pipeline.DISTILL and "distill.on_policy" not in pipeline.DISTILL.reads
    assert replace(pipeline.ON_POLICY, run="", reads=()).distributions[-1] == "trl"


@torch.no_grad()
def plain_ratio(model: Any, teacher: Any, mine: Any, theirs: Any, texts: list[str]) -> float:
    """log of the student's probability over the teacher's of what the student writes, nats a byte."""
    chance, total, count = torch.Generator().manual_seed(7), 0.0, 0

    def nats(net: Any, before: list[int], after: list[int]) -> float:
        log_p = net(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
        return -sum(float(log_p[len(before) - 1 + i, token]) for i, token in enumerate(after))

    for text in texts:
        before = mine(text)["input_ids"]
        after = written(model, before, 12, chance)[len(before) :]
        ended = after[-1] == 2
        said = mine.decode(after[: len(after) - ended])
        read = theirs(said)["input_ids"] + [2] * ended
        total += nats(teacher, theirs(text)["input_ids"], read) - nats(model, before, after)
        count += len(said.encode()) + ended
    return total / count


def test_a_student_with_other_tokens_comes_nearer_too(folder: Path, taught: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sets = (*of_its_own(tmp_path / "own"), "distill.max_steps=40")
    fewer = ("distill.on_policy.steps=30", "distill.on_policy.evaluate_every=15", "distill.on_policy.samples=8")
    facts = run(recipe_of(folder, *sets, *fewer), taught, tmp_path / "both")
    first = run(recipe_of(folder, *sets, "distill.on_policy=null", "distill.baseline=true"), taught, tmp_path / "first")
    assert facts["own_tokens"] and facts["on_policy"]["unit"] == "byte" and facts["on_policy"]["kept"] == "after"
    assert first["kind"] == "baseline"
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    mine, theirs = task.processor(tmp_path / "own"), task.processor(folder / "teacher")
    texts = [
        mine.decode(prompt)
        for prompt in on_policy.prompts(task, mine, [{"text": one} for one in LINES[:24]], recipe_of(folder))
    ]
    before, after = (
        plain_ratio(student.load(tmp_path / out / "model", AutoModelForCausalLM).eval(), teacher, mine, theirs, texts)
        for out in ("first", "both")
    )
    told = facts["on_policy"]
    assert after < 0.85 * before, (before, after)
    assert told["before"]["test"]["reverse_kl"] == pytest.approx(before, rel=0.35)
