"""ExecuTorch: the Program's numbers bit for bit in XNNPACK's graphs; answers by its own runtime and its LLM runner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from _close import close, integers
from _language import model_of, program, says_what_it_is, student

from edgekd.artifact import read_json
from edgekd.errors import BadInput
from edgekd.generators import _contract, _decoder, stage
from edgekd.generators import executorch as writer
from edgekd.quantize import scheme as schemes
from edgekd.quantize import tokens

KINDS = {
    "qwen3": {"kind": "qwen3"},
    "llama": {"kind": "llama", "pre": "llama-bpe", "tied": False, "attention_bias": True},
    "qwen2": {"kind": "qwen2", "pre": "gpt-2", "intermediate_size": 80},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("student"), **KINDS[request.param])


@pytest.mark.parametrize("scheme", schemes.GENERATIVE)
def test_decoder_is_the_model(folder: Path, scheme: str, tmp_path: Path) -> None:
    """What all writers of graphs start from: transformers' logits, by the layers' numbers and a causal attention."""
    made = program(folder, scheme, tmp_path / "p")
    model, names = _decoder.load(made)
    decoder = _decoder.Decoder(model, 64)
    ids = torch.tensor([list(range(40, 60))])

    def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return found.transpose(1, 2)

    with torch.no_grad():
        found = decoder.head(decoder.hidden(ids, decoder.cos[:20], decoder.sin[:20], attend))
        wanted = tokens.load(made)(input_ids=ids).logits
    share = 0.01 if scheme == "w8a8-dynamic" else 1e-5  # the pattern's own arithmetic rounds ties otherwise
    assert (found - wanted).abs().max() <= share * float(np.ptp(wanted.numpy()))
    numbers = _contract.read_numbers(made)
    assert set(names) | ({_decoder.TABLE} if numbers else set()) == numbers.keys()


def test_refusals() -> None:
    with pytest.raises(BadInput, match="model of type 'gpt2'"):
        writer.check(type("C", (), {"model_type": "gpt2"})())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(BadInput, match="rope type 'dynamic'"):
        writer.check(model_of("qwen3", 300, rope_parameters=rope).config)
    assert set(writer.refuses) == set(schemes.GENERATIVE) - writer.accepts


@pytest.mark.slow  # a minute of processor time for each file: ExecuTorch's passes over a graph of dynamic length
@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("qwen3", "w4"), ("qwen3", "w8"), ("qwen3", "w8a8-dynamic"), ("qwen3", "fp32"), ("llama", "w4"), ("qwen2", "w8")],
)
def test_artifact_holds_the_program_and_answers_as_it(kind: str, scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="pip install 'edgekd[executorch]'")
    made = program(student(tmp_path / "s", **KINDS[kind]), scheme, tmp_path / "p")
    artifact = tmp_path / "a"
    artifact.mkdir()
    facts = writer.export(made, artifact, max_length=64)
    says_what_it_is(facts, artifact, max_length=64)
    assert facts["delegates"] == 4  # before, between and behind two attentions, and the head's last row
    wanted = _contract.read_numbers(made)
    assert stage.compared(wanted, writer.numbers(artifact))["missing"] == []
    session = writer.open_session(artifact)
    assert session.observed["threads"] == 1 and session.observed["max_length"] == 64
    assert session.observed["caveats"] == ([writer.TOKENS] if scheme == "w4" else [])
    close(writer, session, made, scheme)
    integers(writer, artifact, made, wanted=15 if scheme == "w8a8-dynamic" else 0)  # seven in each layer, and the head
    session.reset()
    with pytest.raises(BadInput, match="65 tokens"):
        session.feed([1] * 65)
    session.close()
    if (kind, scheme) == ("qwen3", "w4"):
        runner_writes(artifact, made)


def runner_writes(artifact: Path, made: Path) -> None:
    """ExecuTorch's LLM runner, as its users call it: text in, text out, by the file and tokenizer.json.

    Its Python binding wants every single token to be UTF-8 (a random model writes halves of characters too: then
    "UnicodeDecodeError ... unexpected end of data"), so it is asked for as many tokens as are ASCII.
    """
    from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(made / "model/tokenizer.json"))
    runner = TextLLMRunner(str(artifact / writer.FILE), str(artifact / writer.TOKENIZER))
    session, counts = writer.open_session(artifact), []
    for prompt in read_json(made / "golden.json")["prompts"]:
        text, wanted = ours.decode(prompt, skip_special_tokens=False), []
        assert ours.encode(text).ids == prompt
        session.reset()
        logits = session.feed(prompt)
        while len(wanted) < 16 and ours.decode([int(logits.argmax())]).isascii():
            wanted.append(int(logits.argmax()))
            if wanted[-1] in _contract.end_tokens(made):
                break
            logits = session.feed(wanted[-1:])
        counts.append(len(wanted))
        if not wanted:
            continue
        options = GenerationConfig()
        options.max_new_tokens, options.temperature, options.echo = len(wanted), 0.0, False
        said: list[str] = []
        runner.reset()
        runner.generate(text, options, said.append)
        assert "".join(said).startswith(ours.decode(wanted))
    assert max(counts) > 0
