"""LiteRT-LM: the Program's numbers bit for bit in all graphs; answers by LiteRT, and by LiteRT-LM's own client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from _close import close, integers
from _language import program, says_what_it_is, student

from edgekd.artifact import read_json
from edgekd.errors import BadInput, StepFailed
from edgekd.generators import _contract, stage
from edgekd.generators import litert as writer
from edgekd.quantize import scheme as schemes

pytest.importorskip("litert_torch", reason="pip install 'edgekd[litert]'")
pytest.importorskip("litert_lm_builder", reason="pip install 'edgekd[litert]'")
SLOW = pytest.mark.slow  # half a minute of processor time: a conversion for each graph


def exported(kind: str, scheme: str, out: Path, *, layers: int = 2, tied: bool = True) -> tuple[Path, Path]:
    shape = {"attention_bias": True} if kind == "llama" else {}
    folder = student(out / "s", kind, tied=tied, num_hidden_layers=layers, **shape)
    made = program(folder, scheme, out / "p")
    (out / "a").mkdir()
    facts = writer.export(made, out / "a", max_length=32)
    says_what_it_is(facts, out / "a", max_length=32)
    assert facts["prefill"] == [16] and facts["context"] == 32
    return made, out / "a"


@pytest.mark.parametrize(
    ("kind", "scheme", "layers"),
    [
        ("qwen3", "w4", 1),
        pytest.param("llama", "w4", 2, marks=SLOW),
        pytest.param("qwen2", "w8", 2, marks=SLOW),
        pytest.param("qwen3", "w8a8-dynamic", 2, marks=SLOW),
        pytest.param("qwen3", "fp32", 2, marks=SLOW),
    ],
)
def test_artifact_holds_the_program_and_answers_as_it(kind: str, scheme: str, layers: int, tmp_path: Path) -> None:
    made, artifact = exported(kind, scheme, tmp_path, layers=layers, tied=kind != "llama")
    wanted = _contract.read_numbers(made)
    assert stage.compared(wanted, writer.numbers(artifact))["missing"] == []
    session = writer.open_session(artifact)
    assert session.observed["threads"] == 1 and session.observed["max_length"] == 32
    assert session.observed["caveats"] == ([writer.TOKENS] if scheme != "fp32" else [])
    golden = read_json(made / "golden.json")
    session.score(golden["prompts"][0])  # what it knows is forgotten
    close(writer, session, made, scheme)
    integers(writer, artifact, made, wanted=15 if scheme == "w8a8-dynamic" else 0)  # seven in each layer, and the head
    session.reset()
    ids = [*golden["prompts"][0], *golden["tokens"][0]][:20]
    pieces = session.feed(ids)  # 16 of them at once, then 3 and the last
    assert np.array_equal(pieces, interpreted(artifact, ids))
    assert np.abs(pieces - session.score(ids)[-1]).max() <= 1e-4 * np.ptp(pieces)
    session.reset()
    with pytest.raises(BadInput, match="33 tokens"):
        session.feed([1] * 33)
    session.close()
    client_writes(made, artifact)


def interpreted(artifact: Path, ids: list[int]) -> np.ndarray:
    """Logits by LiteRT's interpreter, a cache of its own for every call."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=writer.model_of(artifact), num_threads=1)
    details = interpreter.get_signature_runner("decode").get_input_details()
    cache = {name: np.zeros(one["shape"], np.float32) for name, one in details.items() if name.startswith("kv_cache_")}
    for graph, start, some in (("prefill_16", 0, ids[:16]), ("prefill_16", 16, ids[16:-1]), ("decode", 19, ids[-1:])):
        size = 1 if graph == "decode" else 16
        places = np.arange(start, start + size, dtype=np.int32)
        tokens = np.zeros((1, size), np.int32)
        tokens[0, : len(some)] = some
        seen = np.arange(32) <= places[:, None]
        mask = np.where(seen, 0, writer.MASKED).astype(np.float32)[None, None]
        cache = interpreter.get_signature_runner(graph)(tokens=tokens, input_pos=places, mask=mask, **cache)
    found: np.ndarray = cache["logits"][0, 0]
    return found


def client_writes(made: Path, artifact: Path) -> None:
    """litert-lm as its users call it: text in, text out, by the tokenizer in the file."""
    lm = pytest.importorskip("litert_lm", reason="pip install litert-lm-api")
    from tokenizers import Tokenizer

    ours, ids = Tokenizer.from_file(str(made / "model/tokenizer.json")), read_json(made / "golden.json")["prompts"][0]
    text = ours.decode(ids, skip_special_tokens=False)
    with lm.Engine(str(artifact / writer.FILE), lm.Backend.CPU(thread_count=1), max_num_tokens=32) as engine:
        assert list(engine.tokenize(text)) == ours.encode(text).ids
        with engine.create_session() as session:
            session.run_prefill([text])
            assert session.run_decode().texts[0]


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / writer.FILE).write_bytes(b"no file of this kind")
    with pytest.raises(StepFailed, match="no LiteRT-LM file"):
        writer.open_session(tmp_path)
    assert set(writer.refuses) == set(schemes.GENERATIVE) - writer.accepts
