"""ONNX for plain onnxruntime: both halves hold the Program, answer as transformers does, and keep a cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _language import LINES, says_what_it_is
from _pairs import KINDS, folder, model_of, program, tokenizer

from edgekd.artifact import read_json
from edgekd.errors import BadInput, StepFailed
from edgekd.generators import _contract, stage
from edgekd.generators import onnx as genai
from edgekd.generators import onnxruntime as writer
from edgekd.quantize import tokens
from edgekd.tasks import text2text_generation as task

SLOW = pytest.mark.slow
BUNDLE = Path(__file__).parents[1] / "bundle"
SHAPES: dict[str, dict[str, Any]] = {
    "marian": {"scale_embedding": True, "activation_function": "swish"},
    "bart": {},
    "t5": {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    "t5-gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "d_kv": 24},
}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, sizes in SHAPES.items():
        made[name] = folder(tmp_path_factory.mktemp(name), name.partition("-")[0], **sizes)
    return made


def export(made: Path, out: Path) -> tuple[Path, dict[str, Any]]:
    out.mkdir()
    facts = writer.export(made, out, max_length=64)
    says_what_it_is(facts, out, max_length=64)
    return out, facts


CASES = [(name, "w4") for name in SHAPES] + [("marian", "w8"), ("t5", "fp32")]
REST = [(name, scheme) for name in SHAPES for scheme in ("w8", "fp32") if (name, scheme) not in CASES]
CASES += [pytest.param(*one, marks=SLOW) for one in REST]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_artifact_holds_the_program_and_answers_as_it(
    students: dict[str, Path], name: str, scheme: str, tmp_path: Path
) -> None:
    """Every number bit for bit; logits of a written text within the bound, in one piece and token by token."""
    made = program(students[name], scheme, tmp_path / "program")
    artifact, facts = export(made, tmp_path / "a")
    wanted = _contract.read_numbers(made)
    assert stage.compared(wanted, writer.numbers(artifact))["missing"] == []
    if scheme == "w4":
        assert len(wanted) == 2 * (6 + 10) + 1 + (name == "t5-gated") * 4  # one table: all of them are tied
        assert facts["kernels"]["MatMulNBits 4"] == len(wanted) - 1
    model, golden = tokens.load(made), read_json(made / "golden.json")
    session = writer.open_session(artifact)
    assert session.observed["caveats"] == ([genai.BLOCKS] if scheme != "fp32" else [])
    for source, written in zip(golden["prompts"], golden["tokens"], strict=True):
        begins = [0, *written]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([begins])).logits[0].numpy()
        bound = writer.golden_bound(scheme, float(np.ptp(logits)))
        found = session.score(source, begins)
        assert found.dtype == np.float32 and np.abs(found - logits).max() <= bound
        session.reset()
        steps = [session.feed(source), *(session.feed([token]) for token in written)]
        assert np.abs(np.stack(steps) - logits).max() <= bound


def test_neighbours_and_padding_change_nothing(students: dict[str, Path], tmp_path: Path) -> None:
    for name in ("marian", "t5"):
        artifact, _ = export(program(students[name], "fp32", tmp_path / f"{name}-p"), tmp_path / name)
        session = writer.open_session(artifact)
        sources = [[5, 9, 1], list(range(20, 60)), [7] * 11]
        together = session.together(sources)
        for source, row in zip(sources, together, strict=True):
            session.reset()
            assert np.abs(session.feed(source) - row).max() < 1e-4


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_greedy_texts_are_those_of_transformers_generate(students: dict[str, Path], name: str, tmp_path: Path) -> None:
    made = program(students[name], "fp32", tmp_path / "program")
    artifact, _ = export(made, tmp_path / "a")
    session, model = writer.open_session(artifact), tokens.load(made)
    source = read_json(made / "golden.json")["prompts"][0]
    ids = model.generate(torch.tensor([source]), do_sample=False, num_beams=1, max_new_tokens=24)[0].tolist()
    assert session.write(source, 24) == [token for token in ids[1:] if token != 1]


def test_the_protocol_of_optimum_and_transformers_js(students: dict[str, Path], tmp_path: Path) -> None:
    """Names and shapes as their sessions feed them: an empty cache first, then what came out, the source's kept."""
    import onnxruntime

    artifact, _ = export(program(students["marian"], "w8", tmp_path / "p"), tmp_path / "a")
    encoder, decoder = (
        onnxruntime.InferenceSession(str(artifact / "onnx" / f"{name}.onnx"))
        for name in ("encoder_model", "decoder_model_merged")
    )
    ids = np.array([[5, 9, 30, 1], [7, 1, 0, 0]], np.int64)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int64)
    (states,) = encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    fixed = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    past = {one.name: np.zeros((2, 4, 0, 16), np.float32) for one in decoder.get_inputs() if "past" in one.name}
    assert len(past) == 2 * 4
    written, names = np.zeros((2, 1), np.int64), [one.name for one in decoder.get_outputs()]
    for step in range(3):
        feeds = {"input_ids": written[:, -1:], "use_cache_branch": np.array([step > 0]), **fixed, **past}
        found = dict(zip(names, decoder.run(None, feeds), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        assert past["past_key_values.1.decoder.key"].shape == (2, 4, step + 1, 16)
        assert past["past_key_values.1.encoder.value"].shape == (2, 4, 4, 16)
        written = np.concatenate([written, found["logits"][:, -1].argmax(-1)[:, None]], 1)
    for row, source in enumerate(([5, 9, 30, 1], [7, 1])):
        session = writer.open_session(artifact)
        alone = [int(session.feed(source).argmax())]
        for _ in range(2):
            alone.append(int(session.feed(alone[-1:]).argmax()))
        assert alone == written[row, 1:].tolist()
    told = read_json(artifact / "generation_config.json")
    assert (told["decoder_start_token_id"], told["eos_token_id"]) == (0, 1)
    assert read_json(artifact / "config.json")["is_encoder_decoder"]


def test_files_that_disagree_about_a_shared_table_are_told(students: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    artifact, facts = export(program(students["bart"], "w8", tmp_path / "p"), tmp_path / "a")
    model = onnx.load(artifact / writer.ENCODER)
    table = next(one for one in model.graph.initializer if one.name == "model.shared.q8")
    assert 0 < len(table.raw_data) < facts["twice_bytes"]
    table.raw_data = bytes([table.raw_data[0] ^ 1]) + table.raw_data[1:]
    onnx.save(model, artifact / writer.ENCODER)
    with pytest.raises(StepFailed, match=r"model\.shared"):
        writer.numbers(artifact)


def test_refusals(students: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="model of type 'pegasus'"):
        writer.check(type("C", (), {"model_type": "pegasus"})())
    with pytest.raises(BadInput, match="'tanh'"):
        writer.check(model_of("marian", tokenizer(tmp_path / "t"), activation_function="tanh").config)
    artifact, _ = export(program(students["marian"], "fp32", tmp_path / "p"), tmp_path / "a")
    session = writer.open_session(artifact)
    with pytest.raises(BadInput, match="source of 129 tokens"):
        session.feed([5] * 129)
    session.feed([5, 1])
    with pytest.raises(BadInput, match="holds 128"):
        session.feed([5] * 128)
    assert set(KINDS) == set(writer.TYPES)


@SLOW
@pytest.mark.parametrize("name", ["marian", "t5"])
def test_transformers_js_writes_the_same(students: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The ecosystem's own client opens the folder as it is: its tokenizer, its cache, its greedy search."""
    sys.path.insert(0, str(BUNDLE))
    from _clients import node_with

    home = node_with("@huggingface/transformers")
    shutil.copy(BUNDLE / "clients" / "answers.mjs", home)
    made = program(students[name], "w4", tmp_path / "program")
    artifact, _ = export(made, tmp_path / "models")
    for file in stage.SHIPPED:
        if not (artifact / file).is_file() and (made / "model" / file).is_file():
            shutil.copy(made / "model" / file, artifact / file)
    texts, processor, session = LINES[:4], task.processor(artifact), writer.open_session(artifact)
    code = (
        'import { readFileSync } from "node:fs"; import { answers } from "./answers.mjs";'
        "console.log(JSON.stringify(await answers(JSON.parse(readFileSync(0)))));"
    )
    job = {"folder": str(tmp_path), "name": "models", "kind": "translation", "options": {"dtype": "fp32"}}
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        input=json.dumps({**job, "asked": {"max_new_tokens": 12}, "texts": texts}),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    found = [one[0]["translation_text"] for one in json.loads(done.stdout.splitlines()[-1])]
    ids = [session.write(processor(text)["input_ids"], 12) for text in texts]
    assert found == [processor.decode(one, skip_special_tokens=True) for one in ids] and any(found)
