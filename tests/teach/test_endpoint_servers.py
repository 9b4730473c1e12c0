"""The black-box teacher against servers that people run: `transformers serve` and llama-cpp-python's, on loopback.

Both sit behind a proxy that counts what they are asked. The models are local, tiny and random: what they say
is noise, how it comes is not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import BadInput
from edgekd.teach import answers
from edgekd.teach.answers import read_answers

pytest.importorskip("openai", reason="openai is not installed (pip install 'edgekd[llm]')")
from _stub import Stub, serving
from test_endpoint import KILLED, ROOT, data, made, records, teach

from edgekd import recipe

pytestmark = pytest.mark.slow
CHAT = "{% for one in messages %}<{{ one.role }}>{{ one.content }}{% endfor %}<assistant>"
SERVERS = ("transformers", "llama-cpp")


def tokenizer(folder: Path) -> Any:
    """A byte-level BPE of 400 tokens, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(["question and answer, the teacher says what the student learns"] * 4, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT)
    whole.save_pretrained(folder)
    return whole


def transformers_folder(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    end = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=256, **sizes, **end)).save_pretrained(
        folder
    )
    return folder


def gguf_file(folder: Path) -> Path:
    import gguf
    import numpy as np

    words = tokenizer(folder)
    parts = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary = sorted(parts["vocab"], key=parts["vocab"].get)
    path, width, inner = folder / "tiny.gguf", 64, 128
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(256)
    out.add_embedding_length(width)
    out.add_block_count(2)
    out.add_feed_forward_length(inner)
    out.add_head_count(4)
    out.add_head_count_kv(4)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(16)
    out.add_vocab_size(len(vocabulary))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(vocabulary)
    out.add_token_types([gguf.TokenType.CONTROL if one == "<|end|>" else gguf.TokenType.NORMAL for one in vocabulary])
    out.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in parts["merges"]])
    out.add_eos_token_id(words.eos_token_id)
    out.add_bos_token_id(words.eos_token_id)
    out.add_add_bos_token(False)
    out.add_chat_template(CHAT)
    chance = np.random.default_rng(0)

    def add(name: str, *shape: int, keep: Any = 1.0) -> None:
        values = np.ones(shape) if len(shape) == 1 else chance.normal(0, 0.1, shape) * keep
        out.add_tensor(f"{name}.weight", values.astype(np.float32))

    # It says plain characters only: the server does not count a token that ends within a character, and a random model
    # would never end.
    plain = np.array([[set(one) <= {*map(chr, range(128)), "\u0120"}] for one in vocabulary], float)
    add("token_embd", len(vocabulary), width)
    add("output", len(vocabulary), width, keep=plain)
    add("output_norm", width)
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", width, width)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}", inner, width)
        add(f"blk.{layer}.ffn_down", width, inner)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A server until the block ends; its output is shown when it does not come up."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **offline})
    try:
        until = time.monotonic() + 180
        while True:
            assert child.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it is there; `transformers serve` lists a folder that may not be
            except OSError:
                time.sleep(0.3)
        yield
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, str]]:
    """(its name, its port, the model's name there)."""
    folder, port, log = tmp_path_factory.mktemp("model"), free_port(), tmp_path_factory.mktemp("log") / "server.log"
    needs = {"transformers": ("fastapi", "uvicorn"), "llama-cpp": ("llama_cpp", "fastapi", "sse_starlette", "gguf")}
    missing = [name for name in needs[request.param] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{request.param}'s server is not here: {', '.join(missing)} not installed")
    if request.param == "transformers":
        model = str(transformers_folder(folder))
        command = [
            str(Path(sys.executable).with_name("transformers")),
            "serve",
            model,
            "--device",
            "cpu",
            "--host",
            "127.0.0.1",
        ]
    else:
        model = "tiny"
        command = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf_file(folder)), "--model_alias", model]
        command += ["--host", "127.0.0.1", "--n_ctx", "256", "--n_threads", "1", "--logits_all", "true"]
    with running([*command, "--port", str(port)], port, log):
        yield request.param, port, model


@pytest.fixture
def stub(server: tuple[str, int, str]) -> Iterator[Stub]:
    """A proxy in front of the server that remembers what went through."""

    def reply(body: dict[str, Any], _: int) -> tuple[int, Any]:
        path = "chat/completions" if "messages" in body else "completions"
        url, head = f"http://127.0.0.1:{server[1]}/v1/{path}", {"Content-Type": "application/json"}
        try:
            asked = urllib.request.Request(url, json.dumps(body).encode(), head)
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    with serving() as one:
        one.reply = reply
        yield one


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_server_answers(server: tuple[str, int, str], stub: Stub, tmp_path: Path, kind: str) -> None:
    fields = {"model": server[2], "kind": kind, "max_tokens": 6, "system": "Be brief." if kind == "chat" else None}
    facts = teach(tmp_path / "a", stub.url, 5, **fields)
    assert facts["answers"] + facts["empty"] == 5 and facts["failed"] == 0 and facts["requests"] == 5
    assert facts["answers"] > 0 and facts["tokens"]["guessed"] == 0 and facts["tokens"]["completion"] <= 30
    again = teach(tmp_path / "b", stub.url, 5, **fields)  # another step: at temperature 0 it says the same
    texts = [[row["response"] for row in read_answers(tmp_path / name)] for name in ("a", "b")]
    assert texts[0] == texts[1] and again["requests"] == 5
    assert all(row["truncated"] for row in read_answers(tmp_path / "a")) or facts["truncated"] < 5


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_log_probabilities_come_or_are_missed_at_the_first_request(
    server: tuple[str, int, str], stub: Stub, tmp_path: Path, kind: str
) -> None:
    fields = {"model": server[2], "kind": kind, "max_tokens": 6, "logprobs": 3, "retries": 0}
    if server[0] == "transformers":
        with pytest.raises(BadInput, match=r"no logprobs came back.*logprobs: 0"):
            teach(tmp_path / "a", stub.url, 5, **fields)
        assert len(stub.bodies) == 1
        return
    teach(tmp_path / "a", stub.url, 3, body={"repeat_penalty": 1.0}, **fields)  # its default of 1.1 changes answers
    for row in read_answers(tmp_path / "a"):
        assert row["top_logprobs"]
        for token, value, top in row["top_logprobs"]:
            assert isinstance(token, str) and value <= 0
            assert 1 <= len(top) <= 3  # two tokens whose text is one half of a character are one entry
            assert all(one <= top[0][1] + 1e-6 for _, one in top)
            assert value == pytest.approx(max(one for _, one in top), abs=1e-5)  # greedy


def test_a_prompt_that_is_too_long_is_a_counted_failure_or_an_answer(
    server: tuple[str, int, str], stub: Stub, tmp_path: Path
) -> None:
    rows = [*[{"prompt": f"question {i}"} for i in range(3)], {"prompt": "never ending " * 200}]
    facts = teach(tmp_path / "a", stub.url, rows, model=server[2], max_tokens=4, retries=0, max_failed=0.5)
    assert facts["answers"] + facts["empty"] + facts["failed"] == 4
    assert facts["failed"] == (1 if server[0] == "llama-cpp" else 0)  # transformers goes on beyond its positions


def test_killed_and_resumed_a_server_sees_no_prompt_twice(
    server: tuple[str, int, str], stub: Stub, tmp_path: Path
) -> None:
    """kill -9 in the middle of 24 requests, then the same command: what was answered is not asked for again."""
    where = data(tmp_path / "data", 24).path
    text = recipe.dump(made(stub.url, model=server[2], max_tokens=12, concurrency=2))
    command = [sys.executable, "-c", KILLED, str(ROOT), text, str(where), str(tmp_path / "out")]
    path = tmp_path / "out" / "cache" / answers.RECORDS
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not path.is_file() or path.read_bytes().count(b"\n") <= 10:
        assert child.poll() is None, child.stderr and child.stderr.read().decode()
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    time.sleep(1)  # what was in flight ends
    kept, before = path.read_bytes().count(b"\n") - 1, len(stub.bodies)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    facts, count = json.loads(done.stdout), Counter(stub.prompts)
    assert len(count) == 24 and facts["requests"] == 24 - kept == len(stub.bodies) - before
    twice = [prompt for prompt, times in count.items() if times > 1]
    assert len(twice) <= 2 and all(
        prompt in stub.prompts[kept:before] for prompt in twice
    )  # in flight when it was killed
    assert len(records(path.parent)) == 24
