"""GGUF: the Program's numbers bit for bit in llama.cpp's blocks, by gguf's own reader; answers by llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from _close import close
from _language import HARD, LLAMA3_ROPE, TEMPLATE, model_of, program, says_what_it_is, student, tokenizer
from safetensors.numpy import load_file

from edgekd.artifact import read_json
from edgekd.errors import BadInput
from edgekd.generators import _contract, gguf, stage

reader = pytest.importorskip("gguf", reason="pip install 'edgekd[gguf]'")
KINDS = {
    "qwen3": {"kind": "qwen3"},
    "llama": {
        "kind": "llama",
        "pre": "llama-bpe",
        "tied": False,
        "attention_bias": True,
        "rope_parameters": LLAMA3_ROPE,
    },
    "qwen2": {"kind": "qwen2", "pre": "gpt-2"},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("student"), **KINDS[request.param])


def exported(folder: Path, scheme: str, out: Path) -> tuple[Path, Path]:
    made = program(folder, scheme, out / "program")
    (out / "artifact").mkdir()
    facts = gguf.export(made, out / "artifact", max_length=64)
    says_what_it_is(facts, out / "artifact", max_length=64)
    return made, out / "artifact"


@pytest.mark.parametrize("scheme", ["fp32", "w8", "w4"])
def test_file_holds_the_program(folder: Path, scheme: str, tmp_path: Path) -> None:
    """gguf's own dequantization gives every weight of the transformers folder, and ours every integer and scale."""
    made, artifact = exported(folder, scheme, tmp_path)
    weights, config = _contract.read_weights(made), _contract.read_config(made)
    found = {}
    for tensor in reader.GGUFReader(artifact / gguf.FILE).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name = f"{gguf._parameter(tensor.name)}.{tensor.name.rpartition('.')[2]}"
        values = reader.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        if config.model_type == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2)  # llama.cpp's way, undone
            values = halves.reshape(values.shape)
        found[name] = values
    assert found.keys() == weights.keys() - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    assert all(np.array_equal(values.reshape(weights[name].shape), weights[name]) for name, values in found.items())
    faithful = stage.compared(_contract.read_numbers(made), gguf.numbers(artifact))
    assert faithful["missing"] == [] and (faithful["numbers"] > 0) == (scheme != "fp32")
    kinds = {tensor.tensor_type.name for tensor in reader.GGUFReader(artifact / gguf.FILE).tensors}
    assert kinds == {"F32"} | {"fp32": set(), "w8": {"Q8_0"}, "w4": {"Q8_0", "Q4_0"}}[scheme]


def test_a_changed_number_is_missed(tmp_path: Path) -> None:
    made, artifact = exported(student(tmp_path / "s"), "w4", tmp_path)
    wanted = _contract.read_numbers(made)
    wanted["model.layers.1.mlp.up_proj"][0][3, 5] ^= 1
    wanted["model.embed_tokens"][1][0] *= 2
    missing = stage.compared(wanted, gguf.numbers(artifact))["missing"]
    assert missing == ["model.embed_tokens.scale", "model.layers.1.mlp.up_proj.weight"]


def test_header_says_what_the_model_is(folder: Path, tmp_path: Path) -> None:
    made, artifact = exported(folder, "w4", tmp_path)
    fields = {name: field.contents() for name, field in reader.GGUFReader(artifact / gguf.FILE).fields.items()}
    config, held = read_json(made / "model/config.json"), read_json(made / "model/tokenizer.json")
    kind = config["model_type"]
    assert fields["general.architecture"] == kind and fields["tokenizer.chat_template"] == TEMPLATE
    assert fields[f"{kind}.rope.freq_base"] == config["rope_parameters"]["rope_theta"]
    assert fields[f"{kind}.attention.head_count_kv"] == 2 and fields[f"{kind}.block_count"] == 2
    words = fields["tokenizer.ggml.tokens"]
    assert len(words) == config["vocab_size"] and all(words[i] == word for word, i in held["model"]["vocab"].items())
    assert fields["tokenizer.ggml.eos_token_id"] == 2 and not fields["tokenizer.ggml.add_bos_token"]


def test_unknown_tokenizers_and_models_are_refused(tmp_path: Path) -> None:
    tokenizer(tmp_path, "qwen2")
    held = json.loads((tmp_path / "tokenizer.json").read_text())
    assert gguf.pre_tokenizer(held) == "qwen2"
    with pytest.raises(BadInput, match="with ignore_merges"):
        gguf.pre_tokenizer({**held, "model": {**held["model"], "ignore_merges": True}})
    with pytest.raises(BadInput, match="no name for a tokenizer that cuts words by Whitespace"):
        gguf.pre_tokenizer({**held, "pre_tokenizer": {"type": "Whitespace"}})
    with pytest.raises(BadInput, match="a Unigram tokenizer"):
        gguf.pre_tokenizer({"model": {"type": "Unigram"}})
    for name, sizes, why in (
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope type 'yarn'"),
        ("qwen3", {"hidden_act": "gelu"}, "computes silu"),
        ("qwen3", {"attention_bias": True}, "no Qwen3 with attention_bias"),
        ("qwen2", {"head_dim": 8}, "do not fill hidden_size"),
    ):
        with pytest.raises(BadInput, match=why):
            gguf.check(model_of(name, 300, **sizes).config)
    with pytest.raises(BadInput, match="80 inputs"):
        exported(student(tmp_path / "s", intermediate_size=80), "w8", tmp_path / "o")


def test_llama3_rotations_are_transformers_own() -> None:
    """Plain frequencies divided by the factors in the file are those that transformers turns by."""
    model = model_of("llama", 300, rope_parameters=LLAMA3_ROPE)
    factors = gguf._llama3(model.config)
    plain = 5e5 ** -(np.arange(0, 16, 2) / 16)
    assert np.allclose(plain / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6) and factors.max() > 4


# llama.cpp itself.


@pytest.mark.parametrize("scheme", ["fp32", "w8", "w4"])
def test_llama_cpp_answers_as_transformers(folder: Path, scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="pip install 'edgekd[gguf]'")
    made, artifact = exported(folder, scheme, tmp_path)
    session = gguf.open_session(artifact)
    close(gguf, session, made, scheme)
    assert session.observed["threads"] == 1
    assert (gguf.BLOCKS in session.observed["caveats"]) == (scheme != "fp32")
    session.close()


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "gpt-2", "smollm"])
def test_llama_cpp_cuts_texts_as_the_tokenizer(pre: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="pip install 'edgekd[gguf]'")
    from tokenizers import Tokenizer

    made, artifact = exported(student(tmp_path / "s", pre=pre), "w4", tmp_path)
    session, ours = gguf.open_session(artifact), Tokenizer.from_file(str(made / "model/tokenizer.json"))
    for line in [*HARD, "<|im_start|>user\nHi<|im_end|>\n"]:
        assert session.tokenize(line) == ours.encode(line).ids, line
    session.close()


def test_chat_client_opens_it(tmp_path: Path) -> None:
    """llama-cpp-python's own class: chat by the template in the file."""
    client = pytest.importorskip("llama_cpp", reason="pip install 'edgekd[gguf]'")
    _, artifact = exported(student(tmp_path / "s"), "w4", tmp_path)
    model = client.Llama(str(artifact / gguf.FILE), n_ctx=128, n_threads=1, verbose=False)
    answer = model.create_chat_completion([{"role": "user", "content": "tell me more"}], max_tokens=8, temperature=0)
    assert answer["choices"][0]["message"]["role"] == "assistant" and answer["usage"]["completion_tokens"] > 0


def test_stage(tmp_path: Path) -> None:
    from edgekd.artifact import Artifact, Inputs
    from edgekd.recipe import Recipe

    made = program(student(tmp_path / "s"), "w4", tmp_path / "p")
    held = Artifact(made, "quantize", "w4", "", "", {"max_length": 256})
    (tmp_path / "out").mkdir()
    facts = stage.run(Recipe(), Inputs({"quantize": held}, {"target": "gguf", "scheme": "w4"}), tmp_path / "out")
    assert facts["faithful"]["missing"] == [] and facts["blocks"] == {"Q8_0": 1, "Q4_0": 14}
    assert facts["faithful"]["numbers"] == sum(array.size for array in load_file(made / "numbers.safetensors").values())
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"model.gguf", "golden.json", "tokenizer.json"}
