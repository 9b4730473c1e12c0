"""ONNX for onnxruntime-genai: the builder's graph with the Program's numbers, read back and run by its own runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from _close import close
from _language import HARD, LLAMA3_ROPE, model_of, program, says_what_it_is, student

from edgekd.artifact import read_json, write_json
from edgekd.errors import BadInput
from edgekd.generators import _contract, stage
from edgekd.generators import onnx as genai
from edgekd.quantize import scheme as schemes
from edgekd.quantize import tokens
from edgekd.recipe import Quantize

pytest.importorskip("onnxruntime_genai", reason="pip install 'edgekd[genai]'")
SLOW = pytest.mark.slow
KINDS = {
    "qwen3": {"kind": "qwen3"},
    "llama": {"kind": "llama", "pre": "llama-bpe", "tied": False, "rope_parameters": LLAMA3_ROPE},
    "qwen2": {"kind": "qwen2", "pre": "gpt-2", "intermediate_size": 80},
}


class Built:
    """A student, and its artefacts. The builder takes seconds to start: one float graph serves all schemes."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.student = folder, student(folder / "student", **KINDS[kind])
        self.programs: dict[str, Path] = {}

    def export(
        self, scheme: str, out: Path, monkeypatch: pytest.MonkeyPatch, *, own_floats: bool = False
    ) -> tuple[Path, Path]:
        made = self.programs.get(scheme) or program(self.student, scheme, self.folder / scheme)
        self.programs[scheme] = made
        build, kept = genai._build, self.folder / "float"

        def cached(source: Path, target: Path) -> None:
            if not kept.is_dir():
                kept.mkdir()
                build(source, kept)
            shutil.copytree(kept, target, dirs_exist_ok=True)

        if not own_floats:
            monkeypatch.setattr(genai, "_build", cached)
        out.mkdir()
        says_what_it_is(genai.export(made, out, max_length=64), out, max_length=64)
        monkeypatch.setattr(genai, "_build", build)
        return made, out


@pytest.fixture(scope="module", params=["qwen3", pytest.param("llama", marks=SLOW), pytest.param("qwen2", marks=SLOW)])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("scheme", ["w4", "w8", pytest.param("fp32", marks=SLOW)])
def test_artifact_holds_the_program_and_answers_as_it(
    built: Built, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers and scales bit for bit; logits within the bound.

    The runtime's own tokenizer gives the ids of ours.
    """
    from tokenizers import Tokenizer

    made, artifact = built.export(scheme, tmp_path / "a", monkeypatch, own_floats=scheme == "fp32")
    wanted = _contract.read_numbers(made)
    assert stage.compared(wanted, genai.numbers(artifact))["missing"] == []
    session = genai.open_session(artifact)
    assert session.observed["caveats"] == ([genai.BLOCKS] if scheme != "fp32" else [])
    close(genai, session, made, scheme)
    ours = Tokenizer.from_file(str(made / "model/tokenizer.json"))
    for line in [*HARD, "<|im_start|>user\nHi<|im_end|>\n"]:
        assert session.tokenize(line) == ours.encode(line).ids, line
    session.close()
    weights = sum(weight.size * (4 if scale.shape[1] > 1 else 8) // 8 for weight, scale in wanted.values())
    if wanted:  # scales are float32 here: an eighth of int4 blocks of 32 and more; the rest is the small graph
        assert (artifact / genai.DATA).stat().st_size < 1.5 * weights + 30_000
    assert read_json(artifact / "genai_config.json")["model"]["eos_token_id"] == 2


def test_real_client_generates(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-genai as its users call it: chat template, streaming tokenizer, greedy search."""
    import onnxruntime_genai as og

    made, artifact = built.export("w4", tmp_path / "a", monkeypatch)
    model = og.Model(str(artifact))
    tokenizer = og.Tokenizer(model)
    text = tokenizer.apply_chat_template('[{"role": "user", "content": "tell me"}]', add_generation_prompt=True)
    assert text == "<|im_start|>user\ntell me<|im_end|>\n<|im_start|>assistant\n"
    golden = read_json(made / "golden.json")
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(golden["prompts"][0]) + 16, do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(np.array(golden["prompts"][0], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    written = [int(one) for one in generator.get_sequence(0)][len(golden["prompts"][0]) :]
    same = next((i for i, (a, b) in enumerate(zip(written, golden["tokens"][0], strict=False)) if a != b), None)
    assert written and (same is None or golden["margins"][0][same] < 1.0)


@pytest.mark.parametrize("value", ["w8", pytest.param("fp32", marks=SLOW)])
def test_layers_of_several_kinds(value: str, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query in int4, key in int8, value in floats: the joined product falls apart into three, the numbers stay."""
    settings = Quantize(overrides={"w4": {"*k_proj": "w8", "*v_proj": value}})
    mixed = schemes.generative("w4", settings)
    made = tokens.quantized(tokens.load_student(built.student), mixed, "absmax", [], None)
    name = f"mixed-{value}"
    path = built.programs[name] = tmp_path / "program"
    tokens.save(*made, "w4", built.student, path)
    write_json(path / "golden.json", tokens.golden(made[0], [list(range(40, 52))], 8))
    _, artifact = built.export(name, tmp_path / "a", monkeypatch, own_floats=value == "fp32")
    assert stage.compared(_contract.read_numbers(path), genai.numbers(artifact))["missing"] == []
    close(genai, genai.open_session(artifact), path, "w4")


def test_blocks() -> None:
    """As long as divides a row: fewer scales. Packing is undone exactly."""
    chance = np.random.default_rng(0)
    for inputs, block in ((768, 128), (96, 32), (64, 64), (80, 16)):
        rows = chance.integers(-127, 128, (6, inputs)).astype(np.int8), chance.random((6, 1)).astype(np.float32)
        bits, size, *arrays = genai.packed(*rows)
        assert (bits, size) == (8, block)
        assert all(np.array_equal(a, b) for a, b in zip(genai.unpacked(bits, *arrays), rows, strict=True))
    groups = chance.integers(-8, 8, (6, 96)).astype(np.int8), chance.random((6, 3)).astype(np.float32)
    bits, size, *arrays = genai.packed(*groups)
    assert (bits, size) == (4, 32)
    assert all(np.array_equal(a, b) for a, b in zip(genai.unpacked(bits, *arrays), groups, strict=True))
    with pytest.raises(BadInput, match="24 inputs"):
        genai.packed(np.zeros((2, 24), np.int8), np.ones((2, 1), np.float32))


def test_refusals() -> None:
    with pytest.raises(BadInput, match="model of type 'gpt2'"):
        _contract.check_type(type("C", (), {"model_type": "gpt2"})(), genai.TYPES, "ONNX")
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(BadInput, match="rope type 'yarn'"):
        genai.check(model_of("qwen3", 300, rope_parameters=rope).config)
    assert set(genai.refuses) == set(schemes.GENERATIVE) - genai.accepts
