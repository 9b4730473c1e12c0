"""ExecuTorch: the file says what the Program says, and XNNPACK runs all of its products in integers."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _programs
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from targets import _tiny

from edgekd.errors import BadInput, Environment, StepFailed
from edgekd.quantize import integer, reference
from edgekd.quantize import scheme as schemes
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
    kinds = [[_datatype(layer[name]) for name in ("input", "filter", "bias", "output")] for layer in layers]
    assert (
        kinds.count(INT8["w8a8"]) == 7 and kinds.count(INT8["w8a8-dynamic"]) == 1
    )  # floats behind the contracting one
    assert not [name for name in facts["portable_ops"] if "quantize" in name or "linear" in name or "mm" in name]
    assert facts["delegates"] > 0


def test_trained_numbers_reach_the_file_unchanged(made: Any) -> None:
    """Weights, weight scales, biases, activation scales and zero points, as XNNPACK will read them."""
    program, artefact, _ = made["w8a8"]
    expected = program_layers(program)
    for layer in fully_connected(artefact / "model.pte"):
        weight = np.frombuffer(layer["filter_data"], np.int8).reshape(_tensor(layer["filter"])["dims"])
        anchored = _datatype(layer["input"]) == "qdint8"
        if anchored:
            assert not weight[:, -2:].any()
            weight = weight[:, :-2]
        match = [index for index, one in enumerate(expected) if np.array_equal(one["weight_q"], weight)]
        assert match, "a weight of the file is none of the Program's"
        one = expected.pop(match[0])
        assert np.frombuffer(layer["filter_scales"], np.float32).tobytes() == one["w_scale"].tobytes()
        if anchored:
            assert np.frombuffer(layer["bias_data"], np.float32).tobytes() == one["bias"].astype(np.float32).tobytes()
            ends = [np.float32((end - one["in_zero"]) * one["in_scale"]).tobytes() for end in (-128, 127)]
            assert b"".join(ends) in (artefact / "model.pte").read_bytes()
            continue
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


INT8 = {  # layer -> datatypes of its input, weight, bias and output in the file
    "w8": ["fp32", "qcint8", None, "fp32"],
    "w8a8": ["qint8", "qcint8", "qcint32", "qint8"],
    "w8a8-dynamic": ["qdint8", "qcint8", "fp32", "fp32"],
}


@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w8", "mixed"])
def test_other_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Logits of the Program, every product a layer of XNNPACK with int8 weights, in the file no more than bits promise.

    ``mixed`` is w8a8 whose second feed-forward layer is dynamic.
    """
    name = "w8a8" if scheme == "mixed" else scheme
    if scheme == "mixed":
        other = dataclasses.replace(schemes.SCHEMES[name], overrides={schemes.CONTRACTING: "w8a8-dynamic"})
        monkeypatch.setitem(schemes.SCHEMES, name, other)
    program = _tiny.make_program(tmp_path / "program", name, test=TEST).path
    facts = executorch.export(program, tmp_path, max_length=_tiny.MAX_LENGTH)
    expected = load_file(program / "reference.safetensors")["logits"]
    delta = np.abs(infer(tmp_path, _tiny.encode(TEST)) - expected).max(-1)
    assert delta.max() <= executorch.golden_bound(name, float(np.ptp(expected)))
    assert (delta < 1e-5).mean() >= 0.9

    kinds = [
        [_datatype(layer[side]) for side in ("input", "filter", "bias", "output")]
        for layer in fully_connected(tmp_path / "model.pte")
    ]
    dynamic = {"mixed": 1, "w8a8-dynamic": 8}.get(scheme, 0)
    assert kinds.count(INT8["w8a8-dynamic"]) == dynamic and len(kinds) == 8
    assert kinds.count(INT8[name]) == (7 if scheme == "mixed" else 8)
    assert not [
        one for one in facts["portable_ops"] if any(word in one for word in ("quant", "linear", "mm", "qparam"))
    ]
    state = load_program(program).state_dict
    stored = sum(tensor.numel() * tensor.itemsize for key, tensor in state.items() if not key.endswith("w_zero"))
    assert facts["size_bytes"] < stored + 40_000  # the graph, and alignment of each constant
    weights = [key for key in state if key.endswith("weight_q")]
    content = (tmp_path / "model.pte").read_bytes()
    assert all(state[key].numpy().tobytes() in content for key in weights) and len(weights) == 9


def test_a_dynamic_layer_gives_the_programs_bits() -> None:
    """XNNPACK's choice of scale and zero point, its rounding and its order of products, against numpy's own."""
    torch.manual_seed(0)

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(dynamic_layer(48, 33, bias) for bias in (True, False))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [layer(x) for layer in self.layers]

    module = Layers().eval().requires_grad_(False)
    signature = [{"name": "x", "dtype": "float32", "shape": ["batch", "sequence", 48]}]
    length = torch.export.Dim("length", min=2, max=64)
    program = torch.export.export(module, (torch.ones(1, 8, 48),), dynamic_shapes=({1: length},))
    run = run_in_executorch(program, signature, max_length=64)
    x = torch.randn(1, 40, 48) * torch.logspace(-12, 12, 40)[:, None]  # from tiny to huge, a token each
    for given in (x, x.abs(), -x.abs(), x * 0, torch.nn.functional.gelu(x)):
        for found, layer in zip(run(given), module.layers, strict=True):
            expected = integer.int8_linear_tokens(given, layer.weight_q, layer.w_scale, layer.bias)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_bias_added_apart_is_the_same_bias() -> None:
    layer = dynamic_layer(16, 8, True, kind="w8")
    layer.weight_q.copy_(torch.randint(-127, 128, layer.weight_q.shape))
    layer.w_scale.fill_(0.25)
    layer.bias.copy_((layer.bias * 64).round())  # every product and sum is a float32 number, in any order
    x = torch.randint(-8, 8, (1, 3, 16)).float()
    program = torch.export.export(layer.eval().requires_grad_(False), (x,)).module()
    assert executorch.split_bias(program) == 1
    assert all(len(node.args) == 2 for node in program.graph.nodes if node.target is torch.ops.aten.linear.default)
    assert torch.equal(program(x), layer(x))


def test_one_mask_serves_all_layers() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(attend(x, x, x, mask), x, x, attn_mask=mask)

    torch.manual_seed(0)
    x, mask = torch.randn(1, 2, 7, 8), torch.arange(7).expand(1, 1, 7, 7) < 4
    program = torch.export.export(Twice(), (x, mask))
    spelled = program.module()
    assert executorch.share_masks(spelled) == 1
    targets = [node.target for node in spelled.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.aten.where.Scalar) == 1
    attention = {torch.ops.aten.scaled_dot_product_attention.default: executorch._attention}
    expected = program.run_decompositions(attention).module()(x, mask)
    assert torch.equal(
        torch.export.export(spelled, (x, mask)).run_decompositions(attention).module()(x, mask), expected
    )


def test_sizes_that_are_inferred_are_the_sizes_that_were() -> None:
    class Heads(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], 4, 12).transpose(1, 2)

    length = torch.export.Dim("length", min=2, max=16)
    program = torch.export.export(Heads(), (torch.ones(1, 5, 48),), dynamic_shapes=({1: length},)).run_decompositions(
        {}
    )
    assert executorch.infer_sizes(program.graph) == 1
    program.graph_module.recompile()
    for tokens in (2, 16):
        x = torch.randn(1, tokens, 48)
        assert torch.equal(program.module()(x), Heads()(x))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic", "w8"])
@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_other_encoders(make_program: Any, tmp_path: Path, family: str, scheme: str) -> None:
    program = make_program(scheme, family)
    executorch.export(program.path, tmp_path, max_length=int(program.facts["max_length"]))
    inputs, expected = _programs.golden_of(program)
    session = executorch.open_session(tmp_path)
    found = np.concatenate([session.run(one) for one in inputs])
    assert np.abs(found - expected).max() <= executorch.golden_bound(scheme, float(np.ptp(expected)))
    assert (np.abs(found - expected).max(-1) < 1e-5).mean() >= 0.75


@pytest.mark.slow
def test_same_program_same_bytes(made: Any, tmp_path: Path) -> None:
    program, artefact, _ = made["w8a8"]
    executorch.export(program, tmp_path, max_length=_tiny.MAX_LENGTH)
    assert (tmp_path / "model.pte").read_bytes() == (artefact / "model.pte").read_bytes()


def test_grouped_attention_is_torchs_own() -> None:
    """Two query heads for each key and value head: the same bits."""
    torch.manual_seed(0)
    query, (key, value) = torch.randn(1, 4, 7, 8), torch.randn(2, 1, 2, 7, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    found = executorch._attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


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


def dynamic_layer(inputs: int, outputs: int, bias: bool, kind: str = "w8a8-dynamic") -> reference.ReferenceLinear:
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    layer.__class__, layer.kind = reference.QATLinear, schemes.LAYERS[kind]
    return reference.ReferenceLinear(layer)


def run_in_executorch(program: Any, signature: list[dict[str, Any]], max_length: int) -> Callable[..., list[Any]]:
    """The Program of floats [1, S, I], its length dynamic, as the target lowers it, in the runtime itself."""
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    legal = executorch.legalise(program, signature, max_length)
    edge = to_edge_transform_and_lower(legal, partitioner=[executorch.partitioner()])
    calls = [node.target for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    assert {getattr(call, "__name__", "") for call in calls} == {"executorch_call_delegate", "getitem"}
    content = edge.to_executorch().buffer
    loaded = Runtime.get().load_program(content)
    method, alive = loaded.load_method("forward"), (loaded, content)  # a method reads from both as long as it runs
    return lambda x: [one.clone() for one in method.execute([x])] if alive else []


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
        quantized = output.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
        layers.append(
            {
                "weight_q": state[names[weight.args[0].name]].numpy(),
                "w_scale": state[names[weight.args[1].name]].numpy(),
                "bias": state[names[bias.name]].numpy().astype(np.float64),
                "in_scale": data.args[1],
                "in_zero": data.args[2],
                "out_scale": output.args[1] if quantized else None,
                "out_zero": output.args[2] if quantized else None,
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
            return named[graph["constant_data"][index]["named_key"]] if index else b""

        for node in graph["xnodes"]:
            if node["xnode_union_type"] != "XNNFullyConnected":
                continue
            one = node["xnode_union"]
            weight, bias = values[one["filter_id"]], values.get(one["bias_id"])
            yield {
                "input": values[one["input1_id"]],
                "filter": weight,
                "bias": bias,
                "output": values[one["output_id"]],
                "filter_data": constant(_tensor(weight)["constant_buffer_idx"]),
                "filter_scales": constant(weight.get("quant_params", {}).get("scale_buffer_idx", 0)),
                "bias_data": bias and constant(_tensor(bias)["constant_buffer_idx"]),
                "flatbuffer": flatbuffer,
            }


def _datatype(value: dict[str, Any] | None) -> str | None:
    return value and _tensor(value)["datatype"].removeprefix("xnn_datatype_")


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
