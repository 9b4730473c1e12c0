"""The black-box teacher: what is asked and learnt, no prompt paid twice, budgets that hold, failures told in words."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd import artifact, recipe
from edgekd.errors import BadInput, EdgekdError, Environment
from edgekd.recipe import View
from edgekd.teach import answers, endpoint
from edgekd.teach.answers import Answers, read_answers

pytest.importorskip("openai", reason="openai is not installed (pip install 'edgekd[llm]')")
from _stub import Stub, completion, prompt_of, serving, usual

ROOT = Path(__file__).resolve().parents[2]
SECRET = "sk-test-Zz9-do-not-tell"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setattr("ssl.SSLContext.load_verify_locations", lambda *_, **__: None)  # slow, and nothing is encrypted
    with serving() as one:
        yield one


def made(url: str, **fields: Any) -> Any:
    given = {"base_url": url, "model": "big", "retries": 2, "timeout_seconds": 20, **fields}
    return recipe.parse(json.dumps({"task": "text-generation", "teacher": {"endpoint": given}}))


def data(folder: Path, train: Any, unlabelled: Any = ()) -> artifact.Artifact:
    """A data step with these rows; a number stands for so many prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"question {i}"} for i in range(train)] if isinstance(train, int) else train
    for name, some in (("train", rows), ("unlabelled", unlabelled), ("augmented", ())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    return artifact.Artifact(folder, "data", "", "k", "d")


def teach(
    out: Path, url: str, rows: Any = 5, unlabelled: Any = (), earlier: Any = (), progress: Any = None, **fields: Any
):  # type: ignore[no-untyped-def]
    """The step as the pipeline calls it: only what it declares may be read."""
    out.mkdir(parents=True, exist_ok=True)
    inputs = artifact.Inputs(
        {"data": data(out.parent / f"{out.name}-data", rows, unlabelled)},
        earlier=earlier,
        progress=progress or artifact.no_progress,
    )
    view: Any = View(made(url, **fields), (*endpoint.READS, *endpoint.MEANS))
    return endpoint.run(view, inputs, out)


def records(folder: Path) -> list[dict[str, Any]]:
    head, *lines = (folder / answers.RECORDS).read_text().splitlines()
    assert json.loads(head) == {"schema": answers.SCHEMA}
    return [json.loads(line) for line in lines]


# What is asked, and what is learnt


def test_rows_of_every_kind_are_asked_and_learnt(stub: Stub, tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "go"},
    ]
    rows = [
        {"text": "once upon"},
        {"prompt": "2 + 2", "response": "four"},
        {"messages": [*chat, {"role": "assistant", "content": "the data's own answer"}]},
    ]
    told: list[tuple[int, int, str]] = []
    facts = teach(
        tmp_path / "a.partial",
        stub.url,
        rows,
        [{"prompt": "unseen"}],
        progress=lambda *one: told.append(one),
        system="Be brief.",
        body={"top_p": 0.9},
        max_tokens=7,
        price_in=1.0,
        price_out=2.0,
    )
    asked = {prompt_of(body): body for body in stub.bodies}
    assert asked["go"]["messages"] == [{"role": "system", "content": "Be brief."}, *chat]
    assert asked["2 + 2"] == {
        "model": "big",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2"}],
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.9,
    }
    learnt = read_answers(tmp_path / "a.partial")
    assert [row.get("prompt", row.get("messages")) for row in learnt] == ["once upon", "2 + 2", chat, "unseen"]
    assert [row["response"] for row in learnt] == [f"answer to {one}" for one in ("once upon", "2 + 2", "go", "unseen")]
    assert [(row["source"]["split"], row["source"]["row"]) for row in learnt] == [
        ("train", 0), ("train", 1), ("train", 2), ("unlabelled", 0),
    ]  # fmt: skip
    assert (facts["answers"], facts["requests"], facts["reused"], facts["failed"]) == (4, 4, 0, 0)
    assert facts["tokens"] == {"prompt": 40, "completion": 20, "guessed": 0}
    assert facts["cost"] == pytest.approx((40 * 1 + 20 * 2) / 1e6)
    assert facts["models"] == ["served-model"] and facts["warnings"] == []
    assert told[0] == (0, 4, "answers") and told[-1] == (4, 4, "answers")
    assert all(head["authorization"] == f"Bearer {SECRET}" for head in stub.headers)


def test_a_completion_is_asked_as_text(stub: Stub, tmp_path: Path) -> None:
    teach(tmp_path / "a", stub.url, 2, kind="completion", limit_by="max_completion_tokens", temperature=None)
    body = next(body for body in stub.bodies if body["prompt"] == "question 1")
    assert set(stub.paths) == {"/v1/completions"}
    assert body == {"model": "big", "prompt": "question 1", "max_completion_tokens": 256}
    with pytest.raises(BadInput, match="train row 1: is a conversation, the endpoint completes text"):
        teach(tmp_path / "b", stub.url, [{"messages": [{"role": "user", "content": "x"}]}], kind="completion")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "  "}, "no text, prompt or messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no message of the user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a message without text"),
    ],
)
def test_a_row_that_asks_nothing_is_refused_before_anything_is_spent(
    stub: Stub, tmp_path: Path, row: Any, expected: str
) -> None:
    with pytest.raises(BadInput, match=f"train row 2: .*{expected}"):
        teach(tmp_path / "a", stub.url, [{"prompt": "x"}, row])
    assert stub.bodies == []


def test_several_samples_are_several_requests_and_equal_ones_are_learnt_once(stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda body, number: (200, completion(f"{prompt_of(body)} {'odd' if number % 2 else 'even'}"))
    facts = teach(tmp_path / "a", stub.url, 1, samples=4, temperature=0.7, concurrency=1)
    assert len(stub.bodies) == 4 and facts["answers"] == 2 and facts["repeated"] == 2
    assert [row["source"]["sample"] for row in read_answers(tmp_path / "a")] == [0, 1]
    assert teach(tmp_path / "a", stub.url, 1, samples=6, temperature=0.7)["requests"] == 2


def test_rationales_are_a_second_task_behind_a_prefix(stub: Stub, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a {prompt}"}]}
    facts = teach(
        tmp_path / "a", stub.url, [{"prompt": "2 + 2"}, chat], rationale=True, rationale_template="Why: {prompt}?"
    )
    assert sorted(stub.prompts) == ["2 + 2", "Why: 2 + 2?", "Why: a {prompt}?", "a {prompt}"]
    learnt = read_answers(tmp_path / "a")
    assert [(row["source"]["task"], row["response"]) for row in learnt] == [
        ("answer", "answer to 2 + 2"),
        ("rationale", "answer to Why: 2 + 2?"),
        ("answer", "answer to a {prompt}"),
        ("rationale", "answer to Why: a {prompt}?"),
    ]
    assert learnt[1]["prompt"] == "Explain your reasoning: 2 + 2"
    assert learnt[3]["messages"] == [{"role": "user", "content": "Explain your reasoning: a {prompt}"}]
    assert (facts["answers"], facts["rationales"]) == (2, 2)


LIKELY = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -float("inf")}]
TOP = {
    True: {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": LIKELY}]},
    False: {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": None}]},
}  # fmt: skip


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completion"])
def test_log_probabilities_in_both_spellings(stub: Stub, tmp_path: Path, chat: bool) -> None:
    stub.reply = lambda body, _: (200, completion("a", chat=chat, logprobs=TOP[chat]))
    facts = teach(tmp_path / "a", stub.url, 1, kind="chat" if chat else "completion", logprobs=2)
    (row,) = read_answers(tmp_path / "a")
    assert row["top_logprobs"] == [["a", -0.1, [["a", -0.1], ["b", -9999.0]]]]
    assert facts["knowledge"] == ["answers", "top_logprobs"]
    body = stub.bodies[0]
    assert (body["logprobs"], body.get("top_logprobs")) == ((True, 2) if chat else (2, None))


def test_a_server_without_log_probabilities_is_found_out_by_one_request(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"first request failed: no logprobs came back.*logprobs: 0"):
        teach(tmp_path / "a", stub.url, 9, logprobs=5)
    assert len(stub.bodies) == 1
    assert teach(tmp_path / "a", stub.url, 9)["requests"] == 8  # what was paid for is used

    def refuses(body: dict[str, Any], _: int) -> tuple[int, Any]:
        return 422, {"detail": "Unexpected fields in the request: {'logprobs'}"}

    stub.reply = refuses
    with pytest.raises(BadInput, match=r"the first request failed: 422.*logprobs: 0: this server does not offer them"):
        teach(tmp_path / "b", stub.url, 9, logprobs=5)


def test_answers_with_fewer_log_probabilities_are_asked_again_and_those_with_more_are_not(
    stub: Stub, tmp_path: Path
) -> None:
    stub.reply = lambda body, _: (200, completion("a", logprobs=TOP[True] if "logprobs" in body else None))
    assert teach(tmp_path / "a", stub.url, 3)["requests"] == 3
    assert teach(tmp_path / "a", stub.url, 3, logprobs=2)["requests"] == 3
    assert teach(tmp_path / "a", stub.url, 3, logprobs=1)["requests"] == 0
    assert teach(tmp_path / "a", stub.url, 3)["requests"] == 0


def test_one_answer_without_log_probabilities_is_a_counted_failure(stub: Stub, tmp_path: Path) -> None:
    def reply(body: dict[str, Any], _: int) -> tuple[int, Any]:
        return 200, completion("a", logprobs=None if prompt_of(body) == "question 2" else TOP[True])

    stub.reply = reply
    facts = teach(tmp_path / "a", stub.url, 4, logprobs=2, max_failed=0.3)
    assert (facts["answers"], facts["failed"], facts["tokens"]["prompt"]) == (3, 1, 40)  # it was paid for


# No prompt is paid for twice


def test_equal_prompts_are_asked_once_and_a_second_run_asks_nothing(stub: Stub, tmp_path: Path) -> None:
    rows = [{"prompt": "same"}, {"prompt": "other"}, {"text": "same"}]
    first = teach(tmp_path / "a", stub.url, rows)
    before = (tmp_path / "a" / answers.ANSWERS).read_bytes()
    assert Counter(stub.prompts) == {"same": 1, "other": 1} and first["answers"] == 3
    second = teach(tmp_path / "a", stub.url, rows)
    assert (second["requests"], second["reused"], len(stub.bodies)) == (0, 2, 2)
    assert (tmp_path / "a" / answers.ANSWERS).read_bytes() == before


def test_earlier_and_interrupted_steps_and_shared_folders_are_looked_into(stub: Stub, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    teach(steps / "teach-1.partial", stub.url, 3)
    (steps / "teach-1.partial").rename(steps / "teach-1")
    teach(steps / "teach-2.partial", stub.url, [{"prompt": "paid for, then interrupted"}])
    old = artifact.Artifact(steps / "teach-1", "teach", "", "k", "d")
    rows = [*[{"prompt": f"question {i}"} for i in range(4)], {"prompt": "paid for, then interrupted"}]
    facts = teach(steps / "teach-3.partial", stub.url, rows, earlier=[old])
    assert (facts["requests"], facts["reused"]) == (1, 4)
    assert len(records(steps / "teach-3.partial" / "cache")) == 5  # the step does not need the others any more
    shared = {"cache": str(tmp_path / "shared")}
    assert teach(tmp_path / "x" / "a", stub.url, 2, **shared)["requests"] == 2
    assert teach(tmp_path / "y" / "a", "http://127.0.0.1:9/v1", 2, **shared)["requests"] == 0  # the address is no part
    assert not (tmp_path / "y" / "a" / "cache").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"model": "bigger"},
        {"system": "Be brief."},
        {"max_tokens": 9},
        {"temperature": 0.5},
        {"body": {"top_p": 0.5}},
        {"kind": "completion"},
    ],
    ids=lambda one: next(iter(one)),
)
def test_what_decides_an_answer_is_in_its_key(stub: Stub, tmp_path: Path, other: dict[str, Any]) -> None:
    teach(tmp_path / "a", stub.url, 2)
    assert teach(tmp_path / "a", stub.url, 2, **other)["requests"] == 2
    assert (
        teach(tmp_path / "a", stub.url, 2, concurrency=1, retries=0, limit_by="max_completion_tokens")["requests"] == 0
    )


def test_a_file_cut_at_any_byte_loses_at_most_its_last_line(tmp_path: Path) -> None:
    whole = [{"key": f"{i}", "text": "ü" * i, "logprobs": 0} for i in range(4)]
    with Answers(tmp_path / "a", write=True) as store:
        for one in whole:
            store.append(one)
    content = (tmp_path / "a" / answers.RECORDS).read_bytes()
    for size in range(len(content) + 1):
        folder = tmp_path / f"{size}"
        folder.mkdir()
        (folder / answers.RECORDS).write_bytes(content[:size])
        kept = max(0, content[:size].count(b"\n") - 1)
        with Answers(folder) as store:
            assert [store.get(one["key"]) for one in whole] == whole[:kept] + [None] * (4 - kept)
        with Answers(folder, write=True) as store:
            for one in whole[kept:]:
                store.append(one)
            assert [store.get(one["key"]) for one in whole] == whole
        assert (folder / answers.RECORDS).read_bytes() == content


def test_a_broken_line_another_schema_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    with Answers(tmp_path / "a", write=True) as store:
        store.append({"key": "x", "text": "", "logprobs": 0})
        with pytest.raises(Environment, match="another edgekd writes answers"):
            Answers(tmp_path / "a", write=True)
    Answers(tmp_path / "a", write=True).__exit__(None, None, None)
    path = tmp_path / "a" / answers.RECORDS
    head, line = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([head, b"{half", line, b""]))
    with pytest.raises(BadInput, match=r"records.jsonl: the line at byte \d+ is no record. Delete that line."):
        Answers(tmp_path / "a")
    path.write_bytes(b'{"schema": "edgekd/answers-cache/2"}\n')
    with pytest.raises(BadInput, match=r"schema 'edgekd/answers-cache/2' is not 'edgekd/answers-cache/1'"):
        Answers(tmp_path / "a", write=True)


def test_a_failure_never_hides_an_answer(tmp_path: Path) -> None:
    with Answers(tmp_path, write=True) as store:
        store.append({"key": "x", "error": "500"})
        assert store.get("x") is None and store.get("x", failures=True)["error"] == "500"
        store.append({"key": "x", "text": "y", "logprobs": 0})
        store.append({"key": "x", "error": "500"})
        assert store.get("x", failures=True)["text"] == "y"
    with Answers(tmp_path) as store:
        assert store.get("x")["text"] == "y"


def test_an_interrupt_leaves_what_was_answered(stub: Stub, tmp_path: Path) -> None:
    def interrupted(done: int, total: int, unit: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "a", stub.url, 9, progress=interrupted, concurrency=1)
    assert teach(tmp_path / "a", stub.url, 9)["reused"] == 3


KILLED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from edgekd import artifact, recipe
from edgekd.teach import endpoint
text, data, out = sys.argv[2:]
inputs = artifact.Inputs({"data": artifact.Artifact(Path(data), "data", "", "k", "d")})
Path(out).mkdir(exist_ok=True)
view = recipe.View(recipe.parse(text), (*endpoint.READS, *endpoint.MEANS))
print(json.dumps(endpoint.run(view, inputs, Path(out))))
"""


def test_killed_and_resumed_no_answer_is_paid_for_twice(stub: Stub, tmp_path: Path) -> None:
    """kill -9 in the middle, twice; what the file held at that moment is not asked for again."""
    stub.delay, total, concurrency = 0.02, 40, 4
    where = data(tmp_path / "data", total).path
    text = recipe.dump(made(stub.url, concurrency=concurrency))
    command = [sys.executable, "-c", KILLED, str(ROOT), text, str(where), str(tmp_path / "out")]
    path = tmp_path / "out" / "cache" / answers.RECORDS
    kept, before = set[str](), 0
    for goal in (10, 24):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not path.is_file() or path.read_bytes().count(b"\n") <= goal:
            assert child.poll() is None, child.stderr and child.stderr.read().decode()
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert kept.isdisjoint(stub.prompts[before:])
        whole = path.read_bytes().split(b"\n")[1:-1]
        kept = {json.loads(line)["text"].removeprefix("answer to ") for line in whole}
        assert len(kept) >= goal
        before = len(stub.bodies)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    facts, count = json.loads(done.stdout), Counter(stub.prompts)
    assert kept.isdisjoint(stub.prompts[before:])
    assert len(count) == total and facts["answers"] == total and facts["failed"] == 0
    assert sum(count.values()) - total <= 2 * concurrency  # in flight at one of the kills
    assert len({one["key"] for one in records(path.parent)}) == len(records(path.parent)) == total
    assert (facts["requests"], facts["reused"]) == (total - len(kept), len(kept))


# Budget


def test_a_token_budget_is_never_passed_and_a_raised_one_goes_on(stub: Stub, tmp_path: Path) -> None:
    fields = {"max_tokens": 5, "concurrency": 8}
    with pytest.raises(BadInput) as raised:
        teach(tmp_path / "a", stub.url, 20, max_tokens_total=300, **fields)
    told = str(raised.value)
    first = len(stub.bodies)
    each = 15  # what the stub says an answer takes; before it answers, at most 87
    assert first == (300 - 87) // each + 1 and f"{first * each} of 300 tokens for {first} of 20 requests" in told
    assert "raise max_tokens_total or max_cost and run the same command again" in told and str(tmp_path / "a") in told
    facts = teach(tmp_path / "a", stub.url, 20, max_tokens_total=400, **fields)
    assert len(stub.bodies) == 20 == len(set(stub.prompts)) and facts["requests"] == 20 - first
    assert facts["tokens"]["prompt"] + facts["tokens"]["completion"] == 300


def test_a_cost_limit_counts_what_was_paid_earlier(stub: Stub, tmp_path: Path) -> None:
    prices = {"price_in": 10.0, "price_out": 40.0, "max_tokens": 5}
    teach(tmp_path / "a", stub.url, 10, **prices)  # 10 x (10 x 10 + 5 x 40) millionths
    with pytest.raises(BadInput, match=r"150 tokens, a cost of 0.003 of 0.0035, for 10 of 11 requests"):
        teach(tmp_path / "a", stub.url, 11, max_cost=0.0035, **prices)
    assert len(stub.bodies) == 10
    assert teach(tmp_path / "a", stub.url, 11, max_cost=0.005, **prices)["cost"] == pytest.approx(0.0033)


def test_an_answer_that_the_server_does_not_count_is_counted_in_full(stub: Stub, tmp_path: Path) -> None:
    stub.reply = lambda body, _: (200, usual(body) | {"usage": None})
    facts = teach(tmp_path / "a", stub.url, [{"prompt": "ab"}], max_tokens=9)
    assert facts["tokens"] == {"prompt": 2 + 64 + 8, "completion": 9, "guessed": 1}
    assert "a guess from above" in facts["warnings"][0]


def test_concurrency_is_bounded_and_the_first_request_goes_alone(stub: Stub, tmp_path: Path) -> None:
    seen: list[int] = []

    def reply(body: dict[str, Any], number: int) -> tuple[int, Any]:
        seen.append(stub.here)
        return 200, usual(body)

    stub.delay, stub.reply = 0.02, reply
    rows = [{"prompt": "long " * 9}, {"prompt": "short"}, *[{"prompt": f"middle {i}"} for i in range(20)]]
    teach(tmp_path / "a", stub.url, rows, concurrency=3)
    assert seen[0] == 1 and stub.prompts[0] == "short" and stub.at_once == 3


def test_the_estimate_is_made_before_anything_is_spent(stub: Stub, tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 100}, {"prompt": "y" * 100}]
    fields = {
        "max_tokens": 50,
        "price_in": 1.0,
        "price_out": 2.0,
        "cache": str(tmp_path / "c"),
        "max_tokens_total": 300,
    }
    told = endpoint.estimate(made(stub.url, **fields), rows)
    assert told == {
        "requests": 2,
        "cached": 0,
        "likely": {"prompt": 50, "completion": 100, "cost": pytest.approx(250e-6)},
        "at_most": {"prompt": 2 * 172, "completion": 100, "cost": pytest.approx(544e-6)},
        "fits_budget": False,
    }
    assert stub.bodies == [] and not (tmp_path / "c").exists()
    teach(tmp_path / "a", stub.url, rows[:1], **fields)
    told = endpoint.estimate(made(stub.url, **fields), rows)
    assert (told["requests"], told["cached"], told["fits_budget"]) == (1, 1, True)


# Offline


def test_offline_replays_without_a_server_and_counts_what_is_missing(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = {"cache": str(tmp_path / "shared"), "max_failed": 0.5}
    stub.reply = lambda body, _: (500, {}) if prompt_of(body) == "question 3" else (200, usual(body))
    online = teach(tmp_path / "a", stub.url, 4, retries=0, **cache)
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delenv("OPENAI_API_KEY")
    nowhere = "http://203.0.113.1/v1"
    offline = teach(tmp_path / "b", nowhere, 4, offline=True, **cache)
    assert (tmp_path / "a" / answers.ANSWERS).read_bytes() == (tmp_path / "b" / answers.ANSWERS).read_bytes()
    assert offline["requests"] == 0 and online["failed"] == offline["failed"] == 1
    with pytest.raises(BadInput, match=r"2 of 6 answers are not in the cache, and the endpoint is offline"):
        teach(tmp_path / "c", nowhere, 6, offline=True, **cache)
    with pytest.raises(Environment, match=r"openai is not installed. pip install 'edgekd\[llm\]'"):
        teach(tmp_path / "d", stub.url, 1)


# Failures


@pytest.mark.parametrize(
    ("reply", "kind", "expected"),
    [
        ((400, {"error": {"message": "no such x"}}), BadInput, "first request failed: 400: no such x"),
        ((400, {"error": {"message": "use max_completion_tokens"}}), BadInput, "Set .*limit_by: max_completion"),
        ((401, {"error": {"message": f"wrong: {SECRET}"}}), BadInput, r"refuses the key in OPENAI_API_KEY \(401\)"),
        ((403, {}), BadInput, r"refuses the key in OPENAI_API_KEY \(403\)"),
        ((402, {"error": "pay first"}), Environment, "takes no more requests .402: pay first."),
        ((404, {"detail": "Not Found"}), BadInput, "has no big here .404: Not Found.*mostly ends in /v1"),
        ((422, {"detail": [{"msg": f"odd {SECRET}"}]}), BadInput, r"first request failed: 422: \[.*odd \*\*\*"),
        ((429, {"error": {"message": "slow down"}}), Environment, "no more requests .429: slow down.*are kept"),
        ((500, b"<html>oops</html>"), BadInput, "the first request failed: 500: <html>oops</html>"),
        ((200, b'{"choices": ['), BadInput, r"first request failed: not an answer: .*choices"),
        ((200, b""), BadInput, "first request failed: not an answer: ''"),
        ((200, {"error": {"message": "overloaded"}}), BadInput, "not an answer: .*overloaded"),
        ((200, {"choices": []}), BadInput, "not an answer: .*choices"),
        ((200, [1]), BadInput, r"not an answer: .\[1\]"),
        ((200, completion(["x"])), BadInput, 'not an answer: .*"content"'),
        ((200, b"<" + b"-" * 195 + SECRET.encode()), BadInput, r"<-{100,}.*"),
    ],
    ids=lambda one: str(one[0]) if isinstance(one, tuple) else None,
)  # fmt: skip
def test_a_first_request_that_fails_stops_in_words(
    stub: Stub, tmp_path: Path, reply: Any, kind: type[EdgekdError], expected: str
) -> None:
    stub.reply = lambda body, number: reply
    with pytest.raises(kind, match=expected) as raised:
        teach(tmp_path / "a", stub.url, 6, retries=1)
    assert len(stub.bodies) == (2 if reply[0] in (429, 500) else 1)
    assert SECRET[:8] not in str(raised.value) and "\n" not in str(raised.value)
    stub.reply = None  # whatever it was: it can be tried again
    assert teach(tmp_path / "a", stub.url, 6)["requests"] == 6


def test_too_many_requests_and_server_errors_are_tried_again(stub: Stub, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def reply(body: dict[str, Any], _: int) -> tuple[int, Any]:
        seen[prompt_of(body)] += 1
        return (200, usual(body)) if seen[prompt_of(body)] == 3 else ((429, 503)[seen[prompt_of(body)] - 1], {})

    stub.reply = reply
    facts = teach(tmp_path / "a", stub.url, 4)
    assert facts["answers"] == 4 and facts["failed"] == 0 and len(stub.bodies) == 12


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ((400, {"error": {"message": "the prompt is too long"}}), "400: the prompt is too long"),
        ((500, {}), "500"),
        ((200, b"{"), "not an answer"),
    ],
    ids=["refused", "broken", "malformed"],
)
def test_one_request_that_fails_is_counted_and_asked_again_later(
    stub: Stub, tmp_path: Path, bad: Any, expected: str
) -> None:
    stub.reply = lambda body, _: bad if prompt_of(body) == "question 7" else (200, usual(body))
    with pytest.raises(
        BadInput, match=rf"1 of 20 requests failed, max_failed allows 1.00%; the last: {expected}.*kept"
    ):
        teach(tmp_path / "a", stub.url, 20, retries=0)
    facts = teach(tmp_path / "a", stub.url, 20, retries=0, max_failed=0.05)
    assert (facts["answers"], facts["failed"]) == (19, 1) and "1 of 20 answers failed" in facts["warnings"][0]
    assert Counter(stub.prompts).most_common(2)[0] == ("question 7", 2)
    assert all(count == 1 for prompt, count in Counter(stub.prompts).items() if prompt != "question 7")
    stub.reply = None
    assert teach(tmp_path / "a", stub.url, 20)["requests"] == 1


def test_a_timeout_is_told(stub: Stub, tmp_path: Path) -> None:
    stub.delay = 1.0
    with pytest.raises(BadInput, match=r"the first request failed: no answer within 0\.2 s"):
        teach(tmp_path / "a", stub.url, 3, retries=0, timeout_seconds=0.2)


def test_a_server_that_is_not_there_or_dies_stops_the_step(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(Environment, match=r"http://127.0.0.1:9/v1: cannot be reached.*answers so far are kept"):
        teach(tmp_path / "a", "http://127.0.0.1:9/v1", 3, retries=0)


def test_what_was_on_its_way_when_a_key_is_refused_is_kept(stub: Stub, tmp_path: Path) -> None:
    def reply(body: dict[str, Any], number: int) -> tuple[int, Any]:
        if number == 4:
            return 401, {}
        time.sleep(0.1)
        return 200, usual(body)

    stub.reply = reply
    with pytest.raises(BadInput, match="refuses the key"):
        teach(tmp_path / "a", stub.url, 20, concurrency=4)
    asked = len(stub.bodies)
    assert asked < 20 and len(records(tmp_path / "a" / "cache")) == asked - 1


def test_empty_cut_and_withheld_answers_are_counted(stub: Stub, tmp_path: Path) -> None:
    told = {
        "question 0": completion("cut of", finish="length"),
        "question 1": completion(" \n"),
        "question 2": completion(None),
        "question 3": completion("I can", finish="content_filter"),
    }
    stub.reply = lambda body, _: (200, told.get(prompt_of(body)) or usual(body))
    facts = teach(tmp_path / "a", stub.url, 5)
    assert [facts[name] for name in ("answers", "truncated", "empty", "filtered", "failed")] == [2, 1, 2, 1, 0]
    rows = read_answers(tmp_path / "a")
    assert [(row["response"], row["truncated"]) for row in rows] == [("cut of", True), ("answer to question 4", False)]
    assert "1 of 5 answers are cut at max_tokens" in facts["warnings"][0]
    assert teach(tmp_path / "a", stub.url, 5)["requests"] == 0  # they were paid for


# The key


def test_the_key_is_nowhere_but_in_the_header(
    stub: Stub, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    stub.reply = lambda body, number: (
        (500, {"error": {"message": f"I got {SECRET}"}}) if number == 3 else (200, usual(body))
    )
    with caplog.at_level(logging.DEBUG):
        facts = teach(tmp_path / "a", stub.url, 9, retries=0, max_failed=1.0)
    assert stub.headers[0]["authorization"].endswith(SECRET) and facts["failed"] == 1
    told = caplog.text + "".join(capfd.readouterr()) + json.dumps(facts) + recipe.dump(made(stub.url))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and SECRET not in told + "".join(path.read_text() for path in files)


def test_no_key_is_asked_for_on_this_machine_and_a_missing_one_is_told_elsewhere(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert teach(tmp_path / "a", stub.url, 1)["requests"] == 1
    assert SECRET not in str(stub.headers)
    with pytest.raises(BadInput, match=r"the environment variable OPENAI_API_KEY is not set.*api_key_env: null"):
        teach(tmp_path / "b", "http://203.0.113.1/v1", 1)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u00e4bc")
    with pytest.raises(BadInput, match="what OPENAI_API_KEY holds is no key") as raised:
        teach(tmp_path / "b", stub.url, 1)
    assert "bc" not in str(raised.value)


# The recipe


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"base_url": f"http://me:{SECRET}@host/v1"}, "base_url: has a password or a query in it"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "base_url: has a password or a query in it"),
        ({"base_url": "host:8000"}, "base_url: is no address"),
        ({"api_key_env": SECRET}, "is not the name of an environment variable"),
        ({"api_key": SECRET}, "unknown key 'teacher.endpoint.api_key'.*Did you mean 'api_key_env'"),
        ({"samples": 2}, "several samples at temperature 0"),
        ({"kind": "completion", "system": "x"}, "a completion has no system message"),
        ({"rationale_template": "why?"}, r"has no \{prompt\}"),
        ({"max_cost": 1.0, "price_in": 1.0}, "max_cost needs price_in and price_out"),
        ({"body": {"n": 2}}, "n is set by another field"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else None,
)
def test_a_recipe_that_cannot_be_is_refused_without_its_secrets(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as raised:
        made("http://host/v1", **fields)
    assert SECRET not in str(raised.value)


def test_means_are_no_part_of_what_decides(stub: Stub) -> None:
    assert set(endpoint.READS) | set(endpoint.MEANS) == {
        f"teacher.endpoint.{name}" for name in recipe.Endpoint.model_fields
    }
    one, other = made(stub.url, max_tokens_total=3), made("http://host/v1", offline=True)
    assert one.part(endpoint.READS) == other.part(endpoint.READS)


def test_a_recipe_that_an_endpoint_cannot_teach_is_refused() -> None:
    def parsed(**sections: Any) -> Any:
        given = {"base_url": "http://host/v1", "model": "big"}
        return recipe.parse(
            json.dumps({"teacher": {"endpoint": given, "model": sections.pop("model", None)}, **sections})
        )

    start = {"distill": {"student": {"model": "small"}}}
    endpoint.check(parsed(**start), generates=True)
    endpoint.check(parsed(model="cut from this"), generates=True)
    for made_, generates, expected in (
        (parsed(**start), False, "teaches tasks that write text, text-classification does not"),
        (parsed(teach={"online": True}, **start), True, "teach.online needs the teacher's logits"),
        (parsed(teach={"members": [{"model": "x"}]}, **start), True, "teach.members needs the teacher's logits"),
        (parsed(), True, "nothing the student could start from"),
    ):
        with pytest.raises(BadInput, match=expected):
            endpoint.check(made_, generates=generates)


def test_the_recipes_of_the_page_are_recipes() -> None:
    page = (ROOT / "docs" / "black-box-teacher.md").read_text(encoding="utf-8")
    found = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(found) == 3
    for text in found:
        assert recipe.parse(text).teacher.endpoint is not None


def test_nothing_heavy_is_imported() -> None:
    script = "import sys, edgekd.teach.endpoint; print({'torch', 'numpy', 'openai', 'httpx'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.strip() == "set()", done.stderr
