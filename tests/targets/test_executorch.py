"""ExecuTorch: the file says what the Program says, and XNNPACK runs all of its products in integers."""

from __future__ import annotations

import importlib.resources
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _programs
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from targets import _tiny

from edgekd.errors import BadInput, Environment, StepFailed
from edgekd.targets import executorch
from edgekd.targets._contract import load_program

pytest.importorskip("executorch")

TEST = _tiny.texts(40, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """Scheme -> (Program, artefact folder, export facts)."""
    return _tiny.export_both(executorch, tmp_path_factory.mktemp("executorch"), TEST)


def infer(artefact: Path, encoded: list[dict[str, list[int]]]) -> np.ndarray:
    return _tiny.infer(executorch, artefact, encoded)


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_logits_are_the_programs(made: Any, scheme: str) -> None:
    program, artefact, facts = made[scheme]
    expected = load_file(program / "reference.safetensors")["logits"]
    found = infer(artefact, _tiny.encode(TEST))
    assert found.dtype == np.float32 and found.shape == expected.shape
    delta = np.abs(found - expected).max(-1)
    if scheme == "fp32":
        assert delta.max() < 1e-5
    else:  # one layer has few ties; what is not identical is off by a step or two of the head
        assert (delta == 0).mean() >= 0.9
        assert delta.max() <= executorch.golden_bound(scheme, float(np.ptp(expected)))
    assert facts["file"] == "model.pte" and facts["size_bytes"] == (artefact / "model.pte").stat().st_size
    assert facts["fixed_length"] is False


def test_padding_does_not_change_an_answer(made: Any) -> None:
    artefact = made["w8a8"][1]
    short = _tiny.encode(["w1 w2 w3"])[0]
    longer = {name: [*values, *[0] * (_tiny.MAX_LENGTH - len(values))] for name, values in short.items()}
    # Long first: the runtime shrinks its buffers again, and must not read what the longer text left there.
    padded, alone = infer(artefact, [longer, short])
    np.testing.assert_array_equal(padded, alone)


def test_every_product_is_an_int8_layer_of_the_delegate(made: Any) -> None:
    """Counts layers in the file, not in the facts: a float product would be a fully connected node on fp32 values."""
    program, artefact, facts = made["w8a8"]
    layers = list(fully_connected(artefact / "model.pte"))
    assert len(layers) == len(program_layers(program)) == 8  # 6 of a BERT layer, pooler, classifier
    for layer in layers:
        kinds = [_tensor(layer[name])["datatype"] for name in ("input", "filter", "bias", "output")]
        assert kinds == [
            "xnn_datatype_qint8",
            "xnn_datatype_qcint8",
            "xnn_datatype_qcint32",
            "xnn_datatype_qint8",
        ]
    assert not [name for name in facts["portable_ops"] if "quantize" in name or "linear" in name or "mm" in name]
    assert facts["delegates"] > 0


def test_trained_numbers_reach_the_file_unchanged(made: Any) -> None:
    """Weights, weight scales, biases, activation scales and zero points, as XNNPACK will read them."""
    program, artefact, _ = made["w8a8"]
    expected = program_layers(program)
    for layer in fully_connected(artefact / "model.pte"):
        weight = np.frombuffer(layer["filter_data"], np.int8).reshape(_tensor(layer["filter"])["dims"])
        match = [index for index, one in enumerate(expected) if np.array_equal(one["weight_q"], weight)]
        assert match, "a weight of the file is none of the Program's"
        one = expected.pop(match[0])
        assert np.frombuffer(layer["filter_scales"], np.float32).tobytes() == one["w_scale"].tobytes()
        bias = np.frombuffer(layer["bias_data"], np.int32)
        grid = one["in_scale"] * one["w_scale"].astype(np.float64)
        np.testing.assert_array_equal(bias, np.round(one["bias"] / grid))
        for side, name in (("in", "input"), ("out", "output")):
            numbers = layer[name]["quant_params"]
            assert numbers["zero_point"] == one[f"{side}_zero"]
            # flatc prints six digits; the exact four bytes must stand in the delegate's flatbuffer too.
            assert numbers["scale"] == pytest.approx(one[f"{side}_scale"], rel=1e-4)
            assert np.float32(one[f"{side}_scale"]).tobytes() in layer["flatbuffer"]
    assert not expected, "a layer of the Program is not in the file"


def test_embedding_stays_int8(made: Any) -> None:
    program, artefact, _ = made["w8a8"]
    state = load_program(program).state_dict
    name = next(name for name in state if name.endswith("word_embeddings.weight_q"))
    content = (artefact / "model.pte").read_bytes()
    assert state[name].numpy().tobytes() in content
    assert state[name.replace("weight_q", "w_scale")].numpy().tobytes() in content


def test_file_names_no_place_on_this_machine(made: Any) -> None:
    for _, artefact, _ in made.values():
        content = (artefact / "model.pte").read_bytes()
        for secret in (str(Path.home()), sys.prefix, str(Path(__file__).parents[2]), "site-packages", ".py"):
            assert secret.encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_encoders(make_program: Any, tmp_path: Path, family: str) -> None:
    program = make_program("w8a8", family)
    executorch.export(program.path, tmp_path, max_length=int(program.facts["max_length"]))
    inputs, expected = _programs.golden_of(program)
    session = executorch.open_session(tmp_path)
    found = np.concatenate([session.run(one) for one in inputs])
    assert np.abs(found - expected).max() <= executorch.golden_bound("w8a8", float(np.ptp(expected)))
    assert ((found == expected).all(-1)).mean() >= 0.75


@pytest.mark.slow
def test_same_program_same_bytes(made: Any, tmp_path: Path) -> None:
    program, artefact, _ = made["w8a8"]
    executorch.export(program, tmp_path, max_length=_tiny.MAX_LENGTH)
    assert (tmp_path / "model.pte").read_bytes() == (artefact / "model.pte").read_bytes()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_own(masked: bool) -> None:
    """The respelled attention against torch's reference kernel, with padding and without: the same bits."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 7, 8)
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool)
    mask[..., 4:] = not masked
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(executorch._attention(query, key, value, mask), expected, rtol=0, atol=0)


def test_longer_than_the_file_takes(made: Any) -> None:
    with pytest.raises(BadInput, match=r"17 tokens; the artefact takes 1 to 16"):
        infer(made["fp32"][1], [{"input_ids": [2] * 17, "attention_mask": [1] * 17}])


def test_broken_file(tmp_path: Path) -> None:
    (tmp_path / "model.pte").write_bytes(b"no program" * 100)
    with pytest.raises(StepFailed, match=r"ExecuTorch cannot open it"):
        executorch.open_session(tmp_path)


def test_threads_are_set_and_said(made: Any) -> None:
    assert executorch.open_session(made["fp32"][1], threads=2).observed["threads"] == 2
    assert executorch.open_session(made["fp32"][1], threads=1).observed["threads"] == 1


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[executorch\]'"):
        executorch.export(tmp_path, tmp_path, max_length=16)
    with pytest.raises(Environment, match=r"pip install 'edgekd\[executorch\]'"):
        executorch.open_session(tmp_path)


def program_layers(program: Path) -> list[dict[str, Any]]:
    """The numbers of every quantized linear layer of a Program, read from its graph."""
    exported = load_program(program)
    state = {**exported.state_dict, **exported.constants}
    names = {**exported.graph_signature.inputs_to_parameters, **exported.graph_signature.inputs_to_buffers}
    layers = []
    for node in exported.graph.nodes:
        if node.target is not torch.ops.aten.linear.default:
            continue
        data, weight, bias = node.args
        output = next(iter(node.users))
        layers.append(
            {
                "weight_q": state[names[weight.args[0].name]].numpy(),
                "w_scale": state[names[weight.args[1].name]].numpy(),
                "bias": state[names[bias.name]].numpy().astype(np.float64),
                "in_scale": data.args[1],
                "in_zero": data.args[2],
                "out_scale": output.args[1],
                "out_zero": output.args[2],
            }
        )
    return layers


def fully_connected(file: Path) -> Iterator[dict[str, Any]]:
    """Every fully connected node of every XNNPACK payload in a ``.pte``, its values and constants beside it."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    pte = deserialize_pte_binary(file.read_bytes())
    named = {key: bytes(pte.named_data.buffers[entry.buffer_index]) for key, entry in pte.named_data.pte_data.items()}
    for delegate in pte.program.execution_plan[0].delegates:
        payload = bytes(pte.program.backend_delegate_data[delegate.processed.index].data)
        graph, flatbuffer = _graph(payload)
        values = {_tensor(value["xvalue_union"])["id_out"]: value["xvalue_union"] for value in graph["xvalues"]}

        def constant(index: int, graph: dict[str, Any] = graph) -> bytes:
            return named[graph["constant_data"][index]["named_key"]]

        for node in graph["xnodes"]:
            if node["xnode_union_type"] != "XNNFullyConnected":
                continue
            one = node["xnode_union"]
            weight, bias = values[one["filter_id"]], values[one["bias_id"]]
            yield {
                "input": values[one["input1_id"]],
                "filter": weight,
                "bias": bias,
                "output": values[one["output_id"]],
                "filter_data": constant(_tensor(weight)["constant_buffer_idx"]),
                "filter_scales": constant(weight["quant_params"]["scale_buffer_idx"]),
                "bias_data": constant(_tensor(bias)["constant_buffer_idx"]),
                "flatbuffer": flatbuffer,
            }


def _tensor(value: dict[str, Any]) -> dict[str, Any]:
    return value.get("tensor_value", value)


def _graph(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """An XNNPACK payload's graph, decoded by the flatbuffer compiler that ExecuTorch brings along."""
    import tempfile

    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    flatbuffer = payload[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(importlib.resources.files(serialization).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(flatbuffer)
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        return json.loads(Path(folder, "graph.json").read_text()), flatbuffer
