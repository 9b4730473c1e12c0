"""Text generation: a language model that continues a text, answers a prompt, or takes its turn in a chat.

An example is ``{"text"}`` (learned whole), ``{"prompt", "response"}`` or ``{"messages"}`` (only the response, or what
the assistant says, is learned). A long text becomes several rows, each a piece that fits; a text file is one long
text. Where the tokenizer has a chat template, prompts and messages are written by it.

The output of a row is a matrix [T, 3] over its learned tokens: the log-probability (nats) of the right token, the id
of the likeliest one, and the id of the right one. That is all that the metrics need, and does not grow with the
vocabulary. The unit is the token, so outputs are compared on rows whose right tokens are the same: all of them between
models with one tokenizer; where one lacks tokens (``renumbered``), those that both cut alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.errors import BadInput
from edgekd.tasks import _text
from edgekd.tasks._contract import Encoded, Example

AUTO_TASK = "text-generation"
HEADLINE = "likelihood"
COLUMNS: tuple[str, ...] = ()
OPTIONAL_COLUMNS = ("text", "prompt", "response", "messages")
TEXT_COLUMNS: tuple[str, ...] = ()
LIST_COLUMNS = ("messages",)
FILE_COLUMNS: tuple[str, ...] = ()
INPUTS = _text.INPUTS
GROUP = 1
PER_UNIT = True
SOFT = "forward-kl"
GENERATES = True

BLOCK = 4000  # characters of a text file that are one example: what the splits are made of


def example(row: Mapping[str, Any], labels: Sequence[str]) -> Example:
    """``{"text"}``, ``{"prompt"[, "response"]}`` or ``{"messages"}``; raises BadInput for anything else."""
    if row.get("messages"):
        return {"messages": [_message(one) for one in row["messages"]]}
    if row.get("prompt"):
        response = {"response": row["response"]} if row.get("response") else {}
        return {"prompt": row["prompt"], **response}
    if row.get("text", "").strip():
        return {"text": row["text"]}
    raise BadInput("has neither a text, nor a prompt, nor messages", todo="Map the names with data.columns.")


def _message(one: Any) -> dict[str, str]:
    if not isinstance(one, Mapping) or not isinstance(one.get("content"), str) or not isinstance(one.get("role"), str):
        raise BadInput("a message is not {role, content}", todo='Write [{"role": "user", "content": "..."}, ...].')
    return {"role": one["role"], "content": one["content"]}


def blocks(text: str) -> list[Example]:
    """The examples of a text file: whole lines, about ``BLOCK`` characters each."""
    found, held, size = [], [], 0
    for line in text.splitlines(keepends=True):
        held.append(line)
        size += len(line)
        if size >= BLOCK:
            found.append("".join(held))
            held, size = [], 0
    found.append("".join(held))
    return [{"text": one} for one in found if one.strip()]


def expand(examples: Sequence[Example], processor: Any, max_length: int) -> list[Example]:
    """Texts cut into pieces of at most ``max_length`` tokens; ``end`` says that a piece ends its text."""
    rows: list[Example] = []
    for one in examples:
        if "text" not in one:
            rows.append(one)
            continue
        text = one["text"]
        offsets = processor(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        size = max_length - processor.num_special_tokens_to_add() - 1  # the end of the text is a token too
        starts = [offsets[i][0] for i in range(0, len(offsets), size)]
        for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
            if text[start:stop].strip():
                rows.append({"text": text[start:stop], "end": stop == len(text)})
    return rows


def sample_text(example: Example) -> str:
    """Everything that the model reads, with the turns kept apart."""
    if "messages" in example:
        return "\x1e".join(f"{one['role']}\x1f{one['content']}" for one in example["messages"])
    if "prompt" in example:
        return f"{example['prompt']}\x1f{example.get('response', '')}"
    return str(example["text"])


group_text = sample_text


def labels(config: Any, asked: Sequence[str] | None) -> list[str]:
    """None; raises BadInput for a model that is no causal language model."""
    names = getattr(config, "architectures", None) or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise BadInput(f"is {', '.join(names) or 'of no kind'}, not a causal language model")
    return []


def processor(folder: Path) -> Any:
    """The transformers tokenizer of a folder, with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def encode(processor: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """Ids cut to ``max_length`` on the right, and ``learn``: 1 for the tokens that are predicted, 0 for all others."""
    return [_encode(processor, one, max_length) for one in examples]


def _encode(processor: Any, example: Example, max_length: int) -> Encoded:
    if "text" in example:
        ids = list(processor(example["text"])["input_ids"])
        if example.get("end", True) and processor.eos_token_id is not None and ids[-1:] != [processor.eos_token_id]:
            ids.append(processor.eos_token_id)
        learn = [1] * len(ids)
    else:
        ids, learn = [], []
        for text, counts in _turns(processor, example):
            some = processor(text, add_special_tokens=False)["input_ids"]
            ids += some
            learn += [counts] * len(some)
    learn[:1] = [0] * len(learn[:1])  # nothing predicts the first token
    ids, learn = ids[:max_length], learn[:max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "learn": learn}


def _turns(processor: Any, example: Example) -> list[tuple[str, int]]:
    """The text in pieces, each with whether it is learned: what the assistant says, with the end of its turn.

    ``messages`` may go on with a ``response`` of their own. One that was cut off (``truncated``) has no end to learn.
    """
    cut = bool(example.get("truncated"))
    if processor.chat_template is None:
        if "messages" in example:
            raise BadInput("the tokenizer has no chat template", todo="Use prompt and response, or another tokenizer.")
        said = example.get("response", "")
        end = "" if cut else processor.eos_token or ""
        return [(example["prompt"], 0), *([(said + end, 1)] if said else [])]
    messages = list(example.get("messages") or [{"role": "user", "content": example["prompt"]}])
    if example.get("response"):
        messages.append({"role": "assistant", "content": example["response"]})
    found, told = [], ""
    for count, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _rendered(processor, messages[:count], True)
        whole = _rendered(processor, messages[: count + 1], False)
        if not (asked.startswith(told) and whole.startswith(asked)):
            raise BadInput("the chat template changes earlier turns, so the assistant's words cannot be told apart")
        says = whole[len(asked) :]
        if cut and count == len(messages) - 1:
            says = says[: says.find(message["content"]) + len(message["content"])]
        found += [(asked[len(told) :], 0), (says, 1)]
        told = whole
    if messages[-1]["role"] != "assistant":
        found.append((_rendered(processor, messages, True)[len(told) :], 0))
    return found


def _rendered(processor: Any, messages: Sequence[Mapping[str, str]], asks: bool) -> str:
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))


def prompt(processor: Any, example: Example, max_length: int) -> list[int]:
    """What comes before the first learned token; for a text its first half."""
    encoded = _encode(processor, example, max_length)
    ids, learn = encoded["input_ids"], encoded["learn"]
    first = learn.index(1) if 1 in learn else len(ids)
    return ids[:first] if "text" not in example else ids[: max(1, len(ids) // 2)]


def logits(outputs: Any, inputs: Mapping[str, Any]) -> Any:
    """[B, S, V]."""
    return outputs.logits


def places(encoded: Encoded) -> list[int]:
    """Positions whose next token is learned, [T]."""
    return [i - 1 for i, counts in enumerate(encoded["learn"]) if counts]


def take(logits_SV: Any, encoded: Encoded) -> Any:
    """[T, 3] of one row: log-probability of the right token, the likeliest token, the right token."""
    at = places(encoded)
    right = [encoded["input_ids"][i + 1] for i in at]
    return summary(logits_SV[at], right)


def summary(logits_TV: Any, right: Sequence[int]) -> Any:
    """[T, 3] float32 of the logits (torch or numpy) that predict ``right``."""
    if isinstance(logits_TV, np.ndarray):
        return _summary(logits_TV.astype(np.float32), right)
    import torch

    found = logits_TV.float()
    ids = torch.tensor(right, dtype=torch.int64, device=found.device)
    of_right = found.gather(1, ids[:, None])[:, 0] - found.logsumexp(-1)
    return torch.stack((of_right, found.argmax(-1).float(), ids.float()), 1)


def _summary(logits_TV: np.ndarray, right: Sequence[int]) -> np.ndarray:
    top = logits_TV.max(-1, keepdims=True)
    normal = top[:, 0] + np.log(np.exp(logits_TV - top).sum(-1))
    of_right = logits_TV[np.arange(len(right)), list(right)] - normal
    return np.stack((of_right, logits_TV.argmax(-1), np.asarray(right)), 1).astype(np.float32)


def stack(outputs: Sequence[Any]) -> Any:
    """All tokens of all rows, [M, 3] torch."""
    import torch

    return torch.cat(list(outputs))


def targets(examples: Sequence[Example]) -> list[Any]:
    """None: what is right is in the text."""
    return [None] * len(examples)


def hard_loss(stacked_MK: Any, targets: Sequence[Any]) -> Any:
    """The mean negative log-likelihood, of outputs."""
    return -stacked_MK[:, 0].mean()


def metrics(outputs: Any, examples: Sequence[Example], teacher: Any = None) -> dict[str, float]:
    """``likelihood`` (of a token, geometric mean: 1 / perplexity), ``perplexity``, ``token_accuracy``.

    The mean is over all tokens of all rows, as this model cuts them. With the teacher's outputs also
    ``teacher_agreement``, the share of tokens on which both find the same one likeliest, where any are compared.
    """
    found = np.concatenate([np.asarray(one, np.float64) for one in outputs])
    nats = -found[:, 0].mean()
    told = {
        "likelihood": math.exp(-nats),
        "perplexity": math.exp(min(nats, 700.0)),
        "token_accuracy": float((found[:, 1] == found[:, 2]).mean()),
    }
    if teacher is not None:
        same = np.concatenate([np.empty(0, bool), *(one for one in _same(outputs, teacher) if one is not None)])
        told |= {"teacher_agreement": float(same.mean())} if len(same) else {}
    return told


def renumbered(output: Any, ids: Sequence[int]) -> Any:
    """The output of a row (numpy, [T, 3]) with the ids of another tokenizer; a token that it lacks (-1) stays apart
    from all others under a negative one."""
    found = np.array(output, np.float32)
    old = found[:, 1:].astype(np.int64)
    new = np.asarray(ids)[old]
    found[:, 1:] = np.where(new < 0, -1 - old, new)
    return found


def agree(outputs: Any, others: Any) -> Any:
    """The share of a row's tokens on which both models find the same one likeliest, [N]; 1 where none is compared."""
    return np.array([1.0 if one is None or not len(one) else one.mean() for one in _same(outputs, others)])


def _same(outputs: Any, others: Any) -> list[np.ndarray | None]:
    """Of each row whether the likeliest tokens are the same, [T]; None where the right ones are not."""
    rows = [(np.asarray(a), np.asarray(b)) for a, b in zip(outputs, others, strict=True)]
    return [a[:, 1] == b[:, 1] if np.array_equal(a[:, 2], b[:, 2]) else None for a, b in rows]


def distance(mine: Any, theirs: Any) -> float:
    """Mean |difference| of the right tokens' log-probabilities, nats; 0 where no row has the same ones."""
    rows = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(mine, theirs, strict=True)]
    found = [np.abs(a[:, 0] - b[:, 0]) for a, b in rows if np.array_equal(a[:, 2], b[:, 2])]
    return float(np.concatenate(found).mean()) if any(map(len, found)) else 0.0


def correct(outputs: Any, examples: Sequence[Example]) -> Any:
    """None: it is scored as a whole."""
    return None


def answer(output: Any, example: Example, labels: Sequence[str], top_k: int = 3) -> Any:
    """What a row shows: how likely its text is."""
    return {"perplexity": math.exp(-float(np.asarray(output)[:, 0].mean()))}
