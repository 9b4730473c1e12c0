"""Core ML: the Program's numbers bit for bit in the package; answers by evaluating it, states included, in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from _language import program, says_what_it_is, student

from edgekd.artifact import read_json
from edgekd.errors import BadInput
from edgekd.generators import _contract, stage
from edgekd.generators import coreml as writer
from edgekd.quantize import scheme as schemes
from edgekd.quantize import tokens

pytest.importorskip("coremltools", reason="pip install 'edgekd[coreml]'")


@pytest.mark.parametrize(
    ("kind", "scheme", "layers"),
    [
        ("qwen3", "w4", 1),
        ("llama", "w8", 2),
        ("qwen2", "w4", 2),
        ("qwen3", "fp32", 2),
    ],
)
def test_package_holds_the_program_and_says_what_it_computes(
    kind: str, scheme: str, layers: int, tmp_path: Path
) -> None:
    """A prompt in one piece, then token by token: the states carry what came before."""
    folder = student(tmp_path / "s", kind, tied=kind != "llama", num_hidden_layers=layers)
    made, artifact = program(folder, scheme, tmp_path / "p"), tmp_path / "a"
    artifact.mkdir()
    facts = writer.export(made, artifact, max_length=32)
    says_what_it_is(facts, artifact, max_length=32)
    assert facts["state"] == [1, 2, 32, 16]
    assert stage.compared(_contract.read_numbers(made), writer.numbers(artifact))["missing"] == []
    assert (artifact / "tokenizer.json").is_file() and (artifact / "chat_template.jinja").is_file()
    golden, session = read_json(made / "golden.json"), writer.ReferenceSession(artifact)
    prompt, written = golden["prompts"][0], golden["tokens"][0][:6]
    with torch.no_grad():
        wanted = tokens.load(made)(input_ids=torch.tensor([[*prompt, *written]])).logits[0].numpy()
    bound = writer.golden_bound(scheme, float(np.ptp(wanted)))
    assert np.abs(session.score([*prompt, *written]) - wanted).max() <= bound
    session.reset()  # what it knows is forgotten
    found = [session.feed(prompt), *(session.feed([one]) for one in written)]
    assert np.abs(np.stack(found) - wanted[len(prompt) - 1 :]).max() <= bound
    with pytest.raises(BadInput, match="the package's cache holds 32"):
        session.feed([1] * 32)


def test_a_full_cache_is_read_in_one_piece_as_token_by_token(tmp_path: Path) -> None:
    made, artifact = program(student(tmp_path / "s"), "w8", tmp_path / "p"), tmp_path / "a"
    artifact.mkdir()
    writer.export(made, artifact, max_length=32)
    session, ids = writer.ReferenceSession(artifact), list(range(40, 72))
    whole = session.score(ids)
    assert whole.shape == (32, 400)
    assert np.abs(whole - _contract.Cached.score(session, ids)).max() <= 1e-3 * np.ptp(whole)


def test_schemes() -> None:
    assert set(writer.refuses) == set(schemes.GENERATIVE) - writer.accepts
