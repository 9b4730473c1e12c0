"""The teach stage of a black-box teacher: any OpenAI-compatible endpoint answers, and no prompt is paid twice.

Sequence-level distillation (Kim & Rush 2016, arXiv:1606.07947): the student learns the teacher's answers as if they
were the labels. With ``rationale`` the teacher is also asked for its reasoning, and the student learns that as a second
task behind a prefix (distilling step-by-step, Hsieh et al. 2023, arXiv:2305.02301).

Every answer is kept under the sha256 of what decides it: model, kind, messages or prompt (with system message and
template), answer limit, temperature, further fields, and the number of the sample. Not of the address: the same model
elsewhere is the same teacher. Before a request is sent, its prompt at one token per byte and its longest answer must
fit into the budget beside those in flight; what the answers of this recipe cost earlier is in the count.

Who stops the step: a key that is refused, a model or path that is not there, a server that cannot be reached or
keeps saying "too many requests", a first request that fails in any way, no log-probabilities where some are asked
for, and more failed requests than ``max_failed``. Whatever was answered by then is kept. A request that fails alone (a
prompt that is too long, a timeout, a server error, half an answer) is written down, counted, and asked again next time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekd.artifact import Facts, Inputs, sha256_json, write_atomic
from edgekd.data.stage import TRANSFER, read_split
from edgekd.errors import BadInput, EdgekdError, Environment
from edgekd.recipe import ENDPOINT_MEANS, Endpoint, Recipe
from edgekd.teach.answers import ANSWERS, FOLDER, SCHEMA, Answers, Record

READS = tuple(f"teacher.endpoint.{name}" for name in Endpoint.model_fields if name not in ENDPOINT_MEANS)
MEANS = tuple(f"teacher.endpoint.{name}" for name in ENDPOINT_MEANS)  # read as well, and no part of the step's key
WHERE = "teacher.endpoint"
Prompt = str | list[dict[str, str]]
TOKENS_AROUND = 64, 8  # at most: that a server's template puts around a conversation, and around each message
BYTES_PER_TOKEN = 4  # of English, roughly
NEVER = -9999.0  # as OpenAI writes the log-probability of a token that is out of the question
NO_KEY = "no-key-needed"  # the client wants something to send
SHOWN = 200  # characters of a server's message


@dataclass(frozen=True)
class Request:
    """One question to the teacher: the key of its answer, the prompt as it is sent, and how many tokens it may take."""

    key: str
    prompt: Prompt
    prompt_bytes: int
    prompt_tokens: int  # at most
    answer_tokens: int  # at most


@dataclass(frozen=True)
class Asked:
    """What a row of the data wants to know: its answer number ``sample``, or the reasoning (``rationale``)."""

    split: str
    row: int
    task: str
    sample: int
    learnt: Facts  # what the student is asked: {"prompt": ...} or {"messages": ...}
    request: Request


@dataclass
class Spent:
    """Tokens of the answers so far. An answer whose server counts no tokens is taken to be as long as it may be."""

    settings: Any
    prompt: int = 0
    answer: int = 0
    guessed: int = 0

    def add(self, record: Record, request: Request) -> None:
        """Count one answer."""
        usage = record["usage"] or {"prompt": request.prompt_tokens, "completion": request.answer_tokens}
        self.prompt += usage["prompt"]
        self.answer += usage["completion"]
        self.guessed += record["usage"] is None

    def cost(self, prompt: int = 0, answer: int = 0) -> float | None:
        """In the currency of the prices; None where there are none."""
        each = self.settings.price_in, self.settings.price_out
        if None in each:
            return None
        return float((self.prompt + prompt) * each[0] + (self.answer + answer) * each[1]) / 1e6

    def allows(self, requests: Iterable[Request]) -> bool:
        """Whether all of these fit into what is left, however long they become."""
        some = list(requests)
        prompt, answer = sum(one.prompt_tokens for one in some), sum(one.answer_tokens for one in some)
        tokens, cost = self.settings.max_tokens_total, self.settings.max_cost
        fits = tokens is None or self.prompt + self.answer + prompt + answer <= tokens
        return fits and (cost is None or (self.cost(prompt, answer) or 0.0) <= cost)

    def words(self) -> str:
        """For people."""
        tokens, limit, cost = self.settings.max_tokens_total, self.settings.max_cost, self.cost()
        told = f"{self.prompt + self.answer:,}{f' of {tokens:,}' if tokens else ''} tokens"
        return told if cost is None else f"{told}, a cost of {cost:.4g}{f' of {limit:.4g}' if limit else ''},"


@dataclass
class Session:
    """What came of the requests of this run."""

    made: int = 0
    failed: list[str] = field(default_factory=list)  # why


def check(recipe: Recipe, *, generates: bool) -> None:
    """Raise BadInput for a recipe that an endpoint cannot teach; ``generates``: whether the task writes text."""
    if not generates:
        raise BadInput(
            f"an endpoint teaches tasks that write text, {recipe.task} does not",
            where=WHERE,
            todo="Set task: text-generation, or teacher.model.",
        )
    if recipe.teach.online or recipe.teach.members:
        name = "online" if recipe.teach.online else "members"
        raise BadInput(
            f"teach.{name} needs the teacher's logits, which an endpoint does not give", where=WHERE, todo="Drop it."
        )
    if recipe.distill.student.vocabulary is not None:
        raise BadInput(
            "the words of answers that nobody has given yet cannot be counted",
            where="distill.student.vocabulary",
            todo="Leave it out where an endpoint teaches.",
        )
    if not recipe.teacher.model and not recipe.distill.student.model:
        raise BadInput(
            "there is nothing the student could start from",
            where=WHERE,
            todo="Set distill.student.model, or teacher.model beside the endpoint (the student is cut from it).",
        )


def estimate(recipe: Recipe, examples: Iterable[Mapping[str, Any]]) -> Facts:
    """Requests, tokens and cost of answering these rows, before anything is spent.

    ``likely`` counts four bytes of a prompt as a token, ``at_most`` one; an answer is as long as it may be in both.
    What the shared cache (``teacher.endpoint.cache``) holds is not counted.
    """
    settings: Any = recipe.teacher.endpoint
    requests = {one.request.key: one.request for one in _asked(settings, "train", examples)}
    todo = list(requests.values())
    if settings.cache:
        with Answers(Path(settings.cache)) as store:
            todo = [one for one in todo if not store.get(one.key, settings.logprobs)]
    none = Spent(settings)
    facts: Facts = {"requests": len(todo), "cached": len(requests) - len(todo)}
    answer = sum(one.answer_tokens for one in todo)
    for name, prompt in (
        ("likely", sum(one.prompt_bytes // BYTES_PER_TOKEN for one in todo)),
        ("at_most", sum(one.prompt_tokens for one in todo)),
    ):
        facts[name] = {"prompt": prompt, "completion": answer, "cost": none.cost(prompt, answer)}
    return {**facts, "fits_budget": none.allows(todo)}


def run(recipe: Recipe, inputs: Inputs, out: Path) -> Facts:
    """Write ``answers.jsonl``: rows to train on, for the training split and the transfer rows, in row order."""
    settings: Any = recipe.teacher.endpoint
    data = inputs["data"].path
    asked = [one for split in ("train", *TRANSFER) for one in _asked(settings, split, read_split(data, split))]
    requests = {one.request.key: one.request for one in asked}
    folder = Path(settings.cache) if settings.cache else out / FOLDER
    began = time.monotonic()
    with ExitStack() as stack:
        store = stack.enter_context(Answers(folder, write=not settings.offline))
        known = [store, *(stack.enter_context(Answers(other)) for other in _paid(inputs, out) if other != folder)]

        def find(key: str) -> Record | None:
            """An answer; offline, what failed will do."""
            some = (one.get(key, settings.logprobs, failures=settings.offline) for one in known)
            return min((one for one in some if one), key=lambda one: "error" in one, default=None)

        spent, todo = Spent(settings), []
        for key, request in requests.items():
            record = find(key)
            if record is None:
                todo.append(request)
            elif "error" not in record:
                spent.add(record, request)
                if not settings.offline and store.get(key, settings.logprobs) is None:
                    store.append(record)
        reused, session = len(requests) - len(todo), Session()
        if todo and settings.offline:
            raise BadInput(
                f"{len(todo):,} of {len(requests):,} answers are not in the cache, and the endpoint is offline",
                where=str(store.path),
                todo="Run once with teacher.endpoint.offline: false, or name the folder in teacher.endpoint.cache.",
            )
        if todo:
            tell = _telling(inputs, reused, len(requests))
            session = asyncio.run(_ask_all(settings, todo, len(requests), store, spent, tell))
        rows, facts = _rows(asked, find)
    write_atomic(out / ANSWERS, "".join(json.dumps(row) + "\n" for row in rows))
    seconds = time.monotonic() - began
    return {
        "teacher": {"name": settings.model, "endpoint": settings.base_url, "kind": settings.kind, "parameters": None},
        "metrics": {"validation": {}, "test": {}},  # nobody asks it about held-out rows
        "knowledge": ["answers", *(["top_logprobs"] if settings.logprobs else [])],
        "online": False,
        "samples": len(rows),
        "requests": session.made,
        "reused": reused,
        **facts,
        "tokens": {"prompt": spent.prompt, "completion": spent.answer, "guessed": spent.guessed},
        "cost": spent.cost(),
        "seconds": seconds,
        "samples_per_second": session.made / seconds if session.made else None,
        "warnings": _warnings(facts, len(asked), spent),
    }


def _paid(inputs: Inputs, out: Path) -> list[Path]:
    """Folders of answers: this step's, those of finished ones under other keys, and of interrupted ones."""
    known = [out / FOLDER, *(one.path / FOLDER for one in inputs.earlier), *out.parent.glob(f"*.partial/{FOLDER}")]
    return list(dict.fromkeys(known))


def _telling(inputs: Inputs, done: int, total: int) -> Callable[[int], None]:
    inputs.progress(done, total, "answers")
    return lambda made: inputs.progress(done + made, total, "answers")


# What is asked


def _asked(settings: Any, split: str, examples: Iterable[Mapping[str, Any]]) -> list[Asked]:
    found = []
    for row, example in enumerate(examples):
        prompt = _prompt(settings, example, f"{split} row {row + 1}")
        found += [
            Asked(split, row, "answer", sample, _learnt(prompt), _request(settings, prompt, sample))
            for sample in range(settings.samples)
        ]
        if settings.rationale:
            whole = _reworded(prompt, lambda text: settings.rationale_template.replace("{prompt}", text))
            behind = _reworded(prompt, lambda text: settings.rationale_prefix + text)
            found.append(Asked(split, row, "rationale", 0, _learnt(behind), _request(settings, whole, 0)))
    return found


def _prompt(settings: Any, example: Mapping[str, Any], where: str) -> Prompt:
    """What the row asks: a text, or a conversation that ends with the user."""
    if "messages" not in example:
        text = example.get("prompt", example.get("text"))
        if not isinstance(text, str) or not text.strip():
            raise BadInput("has no text, prompt or messages", where=where)
        return text
    if settings.kind == "completion":
        raise BadInput("is a conversation, the endpoint completes text", where=where, todo=f"Set {WHERE}.kind: chat.")
    messages = [dict(one) for one in example["messages"]]
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()  # the data's own answer
    if not messages or messages[-1].get("role") != "user":
        raise BadInput("its conversation has no message of the user to answer", where=where)
    if not all(isinstance(one.get("content"), str) for one in messages):
        raise BadInput("its conversation has a message without text", where=where, todo="Only text can be asked.")
    return messages


def _reworded(prompt: Prompt, change: Callable[[str], str]) -> Prompt:
    """The prompt with its text, or its last message's, changed."""
    if isinstance(prompt, str):
        return change(prompt)
    return [*prompt[:-1], {**prompt[-1], "content": change(prompt[-1]["content"])}]


def _learnt(prompt: Prompt) -> Facts:
    return {"prompt" if isinstance(prompt, str) else "messages": prompt}


def _request(settings: Any, prompt: Prompt, sample: int) -> Request:
    sent = prompt
    if settings.kind == "chat" and isinstance(prompt, str):
        sent = [{"role": "user", "content": prompt}]
    if settings.system is not None and not isinstance(sent, str) and sent[0]["role"] != "system":
        sent = [{"role": "system", "content": settings.system}, *sent]
    decides = {
        "schema": SCHEMA,
        "model": settings.model,
        "kind": settings.kind,
        "prompt": sent,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "body": settings.body,
        "sample": sample,
    }
    texts = [sent] if isinstance(sent, str) else [one["content"] for one in sent]
    size = sum(len(text.encode()) for text in texts)
    around = TOKENS_AROUND[0] + TOKENS_AROUND[1] * len(texts)
    return Request(sha256_json(decides), sent, size, size + around, settings.max_tokens)


# Asking


async def _ask_all(
    settings: Any, todo: list[Request], total: int, store: Answers, spent: Spent, tell: Callable[[int], None]
) -> Session:
    """Ask what is missing. What is on its way when something stops the step is waited for: it costs too."""
    session, key = Session(), _api_key(settings)
    proven = len(todo) < total  # this endpoint has answered before
    first = min(range(len(todo)), key=lambda at: todo[at].prompt_bytes)
    waiting = [*reversed(todo[:first] + todo[first + 1 :]), todo[first]]
    flying: dict[asyncio.Task[Record], Request] = {}
    stop: EdgekdError | None = None
    async with _client(settings, key) as client:
        while True:
            while waiting and stop is None and len(flying) < (settings.concurrency if proven else 1):
                if not spent.allows([*flying.values(), waiting[-1]]):
                    if not flying:
                        stop = _too_dear(spent, waiting, total, store)
                    break
                request = waiting.pop()
                flying[asyncio.create_task(_ask(client, settings, request, key))] = request
            if not flying:
                break
            done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            came = []
            for task in done:
                request = flying.pop(task)
                try:
                    came.append((request, task.result()))
                except EdgekdError as error:
                    stop = stop or error
            store.append(*(record for _, record in came))
            for request, record in came:
                if "error" not in record:
                    spent.add(record, request)
                wrong = record["error"] if "error" in record else _lacks(record, settings)
                if wrong:
                    session.failed.append(wrong)
                    stop = stop or _too_many(settings, session, proven, total, store)
                else:
                    session.made, proven = session.made + 1, True
            tell(session.made)
    if stop is not None:
        raise stop
    return session


def _too_dear(spent: Spent, waiting: Sequence[Request], total: int, store: Answers) -> BadInput:
    after = waiting[-1]
    return BadInput(
        f"the budget is used up: {spent.words()} for {total - len(waiting):,} of {total:,} requests; the next one may "
        f"take {after.prompt_tokens + after.answer_tokens:,} tokens",
        where=WHERE,
        todo=f"All answers are kept in {store.path}: raise max_tokens_total or max_cost and run the same command "
        "again; only the others are asked for.",
    )


def _lacks(record: Record, settings: Any) -> str:
    return "no logprobs came back" if record["logprobs"] < settings.logprobs else ""


def _too_many(settings: Any, session: Session, proven: bool, total: int, store: Answers) -> BadInput | None:
    if proven and len(session.failed) <= settings.max_failed * total:
        return None
    last = session.failed[-1]
    if not proven:
        return BadInput(f"the first request failed: {last}", where=settings.base_url, todo=_advice(last))
    return BadInput(
        f"{len(session.failed):,} of {total:,} requests failed, max_failed allows {settings.max_failed:.2%}; "
        f"the last: {last}",
        where=settings.base_url,
        todo=f"The answers are kept in {store.path}: run the same command again to ask for the others. "
        + _advice(last),
    )


def _advice(message: str) -> str:
    if "max_completion_tokens" in message:
        return f"Set {WHERE}.limit_by: max_completion_tokens."
    if "logprobs" in message:
        return f"Set {WHERE}.logprobs: 0: this server does not offer them."
    return ""


def _api_key(settings: Any) -> str:
    """The key, from the environment alone. A server on this machine needs none."""
    name = settings.api_key_env
    key = os.environ.get(name, "").strip() if name else ""
    if name and not key and not _loopback(settings.base_url):
        raise BadInput(
            f"the environment variable {name} is not set",
            where=WHERE,
            todo="Put the key into it, or set api_key_env: null for a server that wants none.",
        )
    if not key.isascii() or not key.isprintable():
        raise BadInput(f"what {name} holds is no key", where=WHERE, todo="It has other than plain characters in it.")
    return key or NO_KEY


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _client(settings: Any, key: str) -> Any:
    try:
        import openai
    except ImportError:
        raise Environment("openai is not installed", where=WHERE, todo="pip install 'edgekd[llm]'") from None
    return openai.AsyncOpenAI(
        api_key=key, base_url=settings.base_url, timeout=settings.timeout_seconds, max_retries=settings.retries
    )


async def _ask(client: Any, settings: Any, request: Request, key: str) -> Record:
    """One answer, or one failure, as the store keeps it; raises BadInput or Environment for what stops the step."""
    import openai

    more: dict[str, Any] = {**settings.body, settings.limit_by: settings.max_tokens}
    if settings.temperature is not None:
        more["temperature"] = settings.temperature
    began = time.monotonic()
    try:
        if settings.kind == "chat":
            if settings.logprobs:
                more |= {"logprobs": True, "top_logprobs": settings.logprobs}
            create, question = client.chat.completions.with_raw_response.create, {"messages": request.prompt}
        else:
            if settings.logprobs:
                more["logprobs"] = settings.logprobs
            create, question = client.completions.with_raw_response.create, {"prompt": request.prompt}
        answer = await create(model=settings.model, **question, extra_body=more)
        return {"key": request.key, **_read(answer.text, settings), **_stamp(began)}
    except openai.APITimeoutError:
        told = f"no answer within {settings.timeout_seconds:g} s"
    except openai.APIConnectionError as error:
        raise Environment(
            f"cannot be reached ({_shown(str(error.__cause__ or error), key)})",
            where=settings.base_url,
            todo="Start the server, or correct teacher.endpoint.base_url; the answers so far are kept.",
        ) from None
    except openai.APIStatusError as error:
        told = f"{error.status_code}: {_shown(_message(error), key)}"
        _stop_for(error.status_code, told, settings)
    except _NotAnAnswer as error:
        told = f"not an answer: {_shown(str(error), key)}"
    return {"key": request.key, "error": told, **_stamp(began)}


def _stop_for(status: int, told: str, settings: Any) -> None:
    """Raise for what no other prompt would change."""
    if status in (401, 403):  # without the server's words: some repeat the key
        held = f"the key in {settings.api_key_env}" if settings.api_key_env else "a request without a key"
        raise BadInput(f"refuses {held} ({status})", where=settings.base_url, todo="Check the key and its rights.")
    if status in (404, 405):
        todo = "The address mostly ends in /v1; check model and kind too."
        raise BadInput(f"has no {settings.model} here ({told})", where=settings.base_url, todo=todo)
    if status in (402, 429):
        raise Environment(
            f"takes no more requests ({told})",
            where=settings.base_url,
            todo="Wait, lower concurrency or top the account up, and run the same command again; the answers are kept.",
        )


def _message(error: Any) -> str:
    """What the server says, wherever it puts it."""
    body = error.body
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and name in body:
            body = body[name]
    return str(body or error.response.text or error.message)


def _shown(text: str, key: str) -> str:
    """One short line without the key."""
    return " ".join(text.replace(key, "***").split())[:SHOWN]


def _stamp(began: float) -> Record:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"time": now, "seconds": round(time.monotonic() - began, 3)}


class _NotAnAnswer(Exception):
    """The server's document is not what it should be."""


def _read(text: str, settings: Any) -> Record:
    """The parts of a completion that are kept. Raises _NotAnAnswer."""
    try:
        document = json.loads(text)
        choice = document["choices"][0]
        said = (choice["message"]["content"] if settings.kind == "chat" else choice["text"]) or ""
        said = said.encode(errors="replace").decode()  # half a surrogate pair is no character
        reason, told = choice.get("finish_reason"), choice.get("logprobs")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _NotAnAnswer(repr(text)) from None
    top = _top(told) if settings.logprobs else []
    return {
        "text": said,
        "finish_reason": reason,
        "usage": _usage(document.get("usage")),
        "model": str(document.get("model") or settings.model),
        "logprobs": settings.logprobs if top or not said else 0,
        **({"top_logprobs": top} if top else {}),
    }


def _usage(told: Any) -> Facts | None:
    """Tokens as the server counts them; None where it does not."""
    counts = told if isinstance(told, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    whole = isinstance(prompt, int) and isinstance(completion, int)
    return {"prompt": prompt, "completion": completion} if whole else None


def _top(told: Any) -> list[Any]:
    """[[token, its log-probability, [[token, log-probability], ...]], ...] from either spelling of the API, or []."""
    try:
        if told.get("content"):
            each = [(one["token"], one["logprob"], one["top_logprobs"]) for one in told["content"]]
            return [
                [token, _finite(p), [[it["token"], _finite(it["logprob"])] for it in top]] for token, p, top in each
            ]
        columns = [told.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs")]
        return [
            [token, _finite(p), [[other, _finite(one)] for other, one in (top or {}).items()]]
            for token, p, top in zip(*columns, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else NEVER


# What is learnt


def _rows(asked: Sequence[Asked], find: Callable[[str], Record | None]) -> tuple[list[dict[str, Any]], Facts]:
    """Rows to train on, and what became of all that was asked."""
    rows: list[dict[str, Any]] = []
    facts: Facts = dict.fromkeys(("answers", "rationales", "truncated", "empty", "filtered", "repeated", "failed"), 0)
    models: set[str] = set()
    before: dict[tuple[str, int], set[str]] = {}
    for one in asked:
        record = find(one.request.key)
        if record is None or "error" in record:
            facts["failed"] += 1
            continue
        models.add(record["model"])
        text, said = record["text"], before.setdefault((one.split, one.row), set())
        if record["finish_reason"] == "content_filter" or not text.strip():
            facts["filtered" if record["finish_reason"] == "content_filter" else "empty"] += 1
            continue
        if one.task == "answer" and text in said:
            facts["repeated"] += 1
            continue
        said.add(text)
        cut = record["finish_reason"] == "length"
        facts["rationales" if one.task == "rationale" else "answers"] += 1
        facts["truncated"] += cut
        rows.append({**one.learnt, "response": text, "truncated": cut, "source": _source(one)})
        if record.get("top_logprobs"):
            rows[-1]["top_logprobs"] = record["top_logprobs"]
    return rows, {**facts, "models": sorted(models)}


def _source(one: Asked) -> Facts:
    return {"split": one.split, "row": one.row, "task": one.task, "sample": one.sample, "key": one.request.key}


def _warnings(facts: Facts, asked: int, spent: Spent) -> list[str]:
    told = {
        "truncated": "are cut at max_tokens: raise it, or ask for shorter ones",
        "empty": "are empty and not learnt",
        "filtered": "were withheld by the server's filter",
        "repeated": "repeat another sample of their prompt and are not learnt twice",
        "failed": "failed and are not learnt; the next step that needs them asks again",
    }
    warnings = [f"{facts[name]:,} of {asked:,} answers {words}" for name, words in told.items() if facts[name]]
    if spent.guessed:
        warnings.append(
            f"the server counted no tokens for {spent.guessed:,} answers: the spending is a guess from above"
        )
    return warnings
