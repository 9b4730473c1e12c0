"""Weights that the converter must not see, and how they get into the .tflite file all the same.

The converter folds what it can compute: it multiplies a LayerNorm's weight into the float weight behind it, and then
the stored integers are gone. In its dynamic mode it chooses scales of its own, even for a table of scales. So
``lift_weights`` makes every such weight an input of the graph that is converted, and ``store_weights`` turns that
input of the file into the Program's constant, bit for bit: int8, int4 or half, with the Program's scales.

``merge`` makes one file of several that differ in their length: a signature each, and every constant once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import torch

Form = Literal["dynamic", "blocks", "int8", "int4", "half"]
MULTIPLIES, LOOKS_UP = "FULLY_CONNECTED", "EMBEDDING_LOOKUP"
# What the runtime asks of an operator in these forms (tflite/converter/tools/versioning/op_version.cc).
VERSIONS = {MULTIPLIES: 12, "DEQUANTIZE": 6, "RESHAPE": 1, "SOFTMAX": 1}


@dataclass(frozen=True)
class Stored:
    """A weight or word table of the Program, and the input of the converted graph that stands for it.

    ``values`` [O, I] are int8 (int4 in the form ``int4``) or float16; ``scale`` is [O], or [O, I / group] for ``int4``,
    None for halves. A layer that is ``dynamic``, or ``blocks`` (int4 with scales in halves), takes its inputs in int8
    with a scale for each token; all others compute in float.
    """

    name: str
    values: np.ndarray
    scale: np.ndarray | None
    form: Form


def constant(module: torch.fx.GraphModule, node: torch.fx.Node) -> torch.Tensor:
    """The value of a stored tensor."""
    if node.op != "get_attr":
        raise BadInput(f"quantized weight '{node.name}' is computed, not stored", where="litert")
    value: torch.Tensor = operator.attrgetter(str(node.target))(module)
    return value


def lift_weights(module: torch.fx.GraphModule) -> list[Stored]:
    """Replace the weights of all but static layers, and half word tables, by float buffers ``lifted_<k>``, in place.

    A buffer holds the weights dequantized, so the module gives the same floats as before; only a dynamic layer's
    quantization of its inputs is left out, which is the kernel's business (``store_weights`` asks for it).
    """
    import torch

    aten, ops = torch.ops.aten, torch.ops.quantized_decomposed
    found: list[Stored] = []
    for node in list(module.graph.nodes):
        if node.target is aten.linear.default:
            x, weight = node.args[:2]
            if x.target is ops.dequantize_per_tensor.default or weight.op == "get_attr":
                continue
            form, (values, scale) = _form(module, weight)
            if x.target is ops.dequantize_per_token.default:
                if form != "int8":
                    raise BadInput(f"'{node.name}' has {form} weights and dynamic inputs", where="litert")
                form = "dynamic"
                node.update_arg(0, x.args[0].args[0])
            place = 1
        elif node.target is aten.embedding.default and _is_half(module, node.args[0]):
            form, values, scale, place = "half", constant(module, node.args[0]), None, 0
            for check in [user for user in node.users if user.target is aten._assert_tensor_metadata.default]:
                module.graph.erase_node(check)  # that its rows are halves
        else:
            continue
        name = f"lifted_{len(found)}"
        module.register_buffer(name, _floats(values, scale))
        with module.graph.inserting_before(node):
            node.update_arg(place, module.graph.get_attr(name))
        found.append(Stored(name, values.numpy(), None if scale is None else scale.numpy(), form))
    module.graph.eliminate_dead_code()
    module.recompile()
    return found


def _form(module: torch.fx.GraphModule, weight: torch.fx.Node) -> tuple[Form, tuple[torch.Tensor, torch.Tensor | None]]:
    """How a linear layer's weight is stored: values and scales."""
    import torch

    ops = torch.ops.quantized_decomposed
    if weight.target is ops.dequantize_per_channel.default:
        return "int8", (constant(module, weight.args[0]), constant(module, weight.args[1]))
    if weight.target is ops.dequantize_per_channel_group.default:
        return "int4", (constant(module, weight.args[0]), constant(module, weight.args[1]))
    if weight.args and _is_half(module, weight.args[0]):
        return "half", (constant(module, weight.args[0]), None)
    raise BadInput(f"weight '{weight.name}' is stored in no form that a scheme has", where="litert")


def _is_half(module: torch.fx.GraphModule, node: Any) -> bool:
    import torch

    return isinstance(node, torch.fx.Node) and node.op == "get_attr" and constant(module, node).dtype == torch.float16


def _floats(values: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    if scale is None:
        return values.float()
    group = values.numel() // scale.numel()
    return (values.reshape(-1, group).float() * scale.reshape(-1, 1)).reshape(values.shape)


def store_weights(content: bytes, weights: Sequence[Stored]) -> bytes:
    """The file ``content`` with constants in place of the inputs named in ``weights``.

    ``dynamic``, ``blocks``: an operand of FULLY_CONNECTED whose float inputs the runtime quantizes. ``int8``, ``half``:
    a constant and its DEQUANTIZE to float, so that the arithmetic is float. ``int4``: that, a group a row, reshaped.
    Raises BadInput where an input does not feed exactly the operators it should: then the converter saw through it.
    """
    if not weights:
        return content
    file = _File(content)
    for weight in weights:
        file.store(weight)
    return written(file.model)


def merge(contents: Mapping[str, bytes]) -> bytes:
    """One file of the graphs of ``contents``, each under its name as signature; the first is what an app gets that
    names none. Constants and operator codes that are equal are stored once, whichever graph they come from.
    """
    if len(contents) == 1:
        return next(iter(contents.values()))
    models = [parsed(content) for content in contents.values()]
    whole = models[0]
    buffers, codes = _Distinct(), _Distinct()
    buffers.place(type(whole.buffers[0])(), b"")  # buffer 0 is that of every tensor that is computed
    graphs, signatures = [], []
    for index, (name, model) in enumerate(zip(contents, models, strict=True)):
        ((graph,), (signature,)) = model.subgraphs, model.signatureDefs
        for tensor in (*graph.tensors, *(model.metadata if model is whole else ())):
            one = model.buffers[tensor.buffer]
            tensor.buffer = buffers.place(one, b"" if one.data is None else bytes(one.data))
        for one in graph.operators:
            code = model.operatorCodes[one.opcodeIndex]
            one.opcodeIndex = codes.place(code, tuple(sorted(vars(code).items(), key=lambda item: item[0])))
        graph.name = signature.signatureKey = name.encode()
        signature.subgraphIndex = index
        graphs.append(graph)
        signatures.append(signature)
    whole.subgraphs, whole.signatureDefs = graphs, signatures
    whole.buffers, whole.operatorCodes = buffers.values, codes.values
    return written(whole)


def separate(content: bytes) -> Iterator[bytes]:
    """Files of one graph each, as the runtime takes them: what ``merge`` was given, in its order."""
    for index in range(len(parsed(content).subgraphs)):
        model = parsed(content)
        if len(model.subgraphs) == 1:
            yield content
            return
        model.signatureDefs = [one for one in model.signatureDefs if one.subgraphIndex == index]
        model.subgraphs = [model.subgraphs[index]]
        for signature in model.signatureDefs:
            signature.subgraphIndex = 0
        yield written(model)


class _Distinct:
    """A list without repetitions: ``place`` gives the index of a value, known by its key."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, value: Any, key: Any) -> int:
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]


def parsed(content: bytes) -> Any:
    """A .tflite file as objects of its schema."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


class _File:
    """A .tflite file of one graph as objects of its schema."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = parsed(content)
        (self.graph,) = self.model.subgraphs
        self.dequantized = 0  # operators that stand before all others

    def store(self, weight: Stored) -> None:
        kinds = self.schema.TensorType
        index = self._take_input(weight.name)
        readers = [one for one in self.graph.operators if index in list(one.inputs)]
        if weight.form in ("dynamic", "blocks"):
            for reader in self._only(MULTIPLIES, readers, weight):
                reader.builtinOptions.asymmetricQuantizeInputs = True
                self._raise_version(reader, VERSIONS[MULTIPLIES])
            blocks = weight.form == "blocks"
            self.graph.tensors[index] = (
                self._blocks(weight) if blocks else self._constant(weight.name, weight.values, kinds.INT8, weight.scale)
            )
        elif weight.form == "int8":
            self._only(MULTIPLIES, readers, weight)
            self._dequantize(self._add(self._constant(weight.name, weight.values, kinds.INT8, weight.scale)), index)
        elif weight.form == "int4":
            self._only(MULTIPLIES, readers, weight)
            self._store_groups(weight, index)
        elif readers and self._name(readers[0]) == LOOKS_UP:
            self._store_table(weight, index, readers)
        else:
            self._only(MULTIPLIES, readers, weight)
            self._dequantize(self._add(self._constant(weight.name, weight.values, kinds.FLOAT16)), index)

    def _take_input(self, name: str) -> int:
        """The tensor of this input, which is none from here on."""
        (signature,) = self.model.signatureDefs
        taken = [one for one in signature.inputs if one.name.decode() == name]
        if len(taken) != 1:
            raise BadInput(f"the converter lost '{name}'", where="litert")
        index = taken[0].tensorIndex
        signature.inputs = [one for one in signature.inputs if one is not taken[0]]
        self.graph.inputs = [one for one in self.graph.inputs if one != index]
        return int(index)

    def _name(self, one: Any) -> str:
        code = self.model.operatorCodes[one.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return next(str(name) for name, value in vars(self.schema.BuiltinOperator).items() if value == number)

    def _only(self, name: str, readers: Sequence[Any], weight: Stored) -> Sequence[Any]:
        found = sorted({self._name(one) for one in readers})
        if found != [name]:
            raise BadInput(
                f"'{weight.name}' feeds {found or 'nothing'} in the converted graph, not {name}", where="litert"
            )
        return readers

    def _raise_version(self, one: Any, version: int) -> None:
        code = self.model.operatorCodes[one.opcodeIndex]
        code.version = max(code.version, version)

    def _add(self, tensor: Any) -> int:
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _constant(self, name: str, values: np.ndarray, kind: int, scale: np.ndarray | None = None) -> Any:
        """A tensor with values, by row with a scale each where there are scales; int4 values are packed in pairs."""
        import numpy as np

        flat = np.ascontiguousarray(values).reshape(-1)
        if kind == self.schema.TensorType.INT4:
            flat = np.pad(flat, (0, flat.size % 2))
            flat = (flat[0::2] & 15) | (flat[1::2] << 4)
        buffer = self.schema.BufferT()
        buffer.data = flat.view(np.uint8)
        self.model.buffers.append(buffer)
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), kind, len(self.model.buffers) - 1
        tensor.shape, tensor.hasRank = np.array(values.shape, np.int32), True
        if scale is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = scale.astype(np.float32)
            tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
        return tensor

    def _blocks(self, weight: Stored) -> Any:
        """An int4 tensor whose scales, one for each block of a row, are a tensor of halves."""
        import numpy as np

        kinds, scale = self.schema.TensorType, weight.scale
        assert scale is not None
        tensor = self._constant(weight.name, weight.values, kinds.INT4)
        details = self.schema.BlockwiseQuantizationT()
        details.scales = self._add(self._constant(f"{weight.name}.scale", scale.astype(np.float16), kinds.FLOAT16))
        details.zeroPoints, details.blockSize = -1, weight.values.shape[1] // scale.shape[1]
        tensor.quantization = self.schema.QuantizationParametersT()
        tensor.quantization.detailsType = self.schema.QuantizationDetails.BlockwiseQuantization
        tensor.quantization.details, tensor.quantization.quantizedDimension = details, 0
        return tensor

    def _computed(self, name: str, shape: Sequence[int], kind: int) -> int:
        import numpy as np

        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name.encode(), kind, 0
        tensor.shape, tensor.hasRank = np.array(shape, np.int32), True
        return self._add(tensor)

    def _operator(self, name: str, inputs: list[int], outputs: list[int], options: Any = None) -> Any:
        """An operator of this kind, that stands nowhere yet."""
        number = getattr(self.schema.BuiltinOperator, name)
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), VERSIONS[name]
        codes = self.model.operatorCodes
        places = [
            place
            for place, one in enumerate(codes)
            if max(one.builtinCode, one.deprecatedBuiltinCode) == number and not one.customCode
        ]
        if not places:
            codes.append(code)
            places = [len(codes) - 1]
        codes[places[0]].version = max(codes[places[0]].version, code.version)
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = places[0], inputs, outputs
        made.intermediates, made.mutatingVariableInputs = [], []
        if options is not None:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__[:-1])
            made.builtinOptions = options
        return made

    def _before_all(self, made: Any) -> None:
        self.graph.operators.insert(self.dequantized, made)
        self.dequantized += 1

    def _dequantize(self, source: int, target: int) -> None:
        self._before_all(self._operator("DEQUANTIZE", [source], [target], self.schema.DequantizeOptionsT()))

    def _store_groups(self, weight: Stored, index: int) -> None:
        import numpy as np

        assert weight.scale is not None
        kinds, rows = self.schema.TensorType, weight.scale.size
        values, scale = weight.values.reshape(rows, -1), weight.scale.reshape(-1)
        floats = self._computed(f"{weight.name}_groups", values.shape, kinds.FLOAT32)
        self._dequantize(self._add(self._constant(weight.name, values, kinds.INT4, scale)), floats)
        shape = np.array(weight.values.shape, np.int32)
        options = self.schema.ReshapeOptionsT()
        options.newShape = shape
        inputs = [floats, self._add(self._constant(f"{weight.name}_shape", shape, kinds.INT32))]
        self._before_all(self._operator("RESHAPE", inputs, [index], options))

    def _store_table(self, weight: Stored, index: int, readers: Sequence[Any]) -> None:
        """The rows in use, looked up as halves and made floats: the table stays half in the file and in memory."""
        kinds = self.schema.TensorType
        self.graph.tensors[index] = self._constant(weight.name, weight.values, kinds.FLOAT16)
        for reader in self._only(LOOKS_UP, readers, weight):
            (rows,) = reader.outputs
            halves = self._computed(f"{weight.name}_rows", self.graph.tensors[rows].shape, kinds.FLOAT16)
            reader.outputs = [halves]
            place = next(k for k, one in enumerate(self.graph.operators) if one is reader)
            made = self._operator("DEQUANTIZE", [halves], [rows], self.schema.DequantizeOptionsT())
            self.graph.operators.insert(place + 1, made)


def written(model: Any) -> bytes:
    """The file. Constants lie at multiples of 16 bytes, as the schema says and its Python writer does not do.

    The runtime wants a zero point of 8 bytes for every scale, which is half the size of an int4 group, and every graph
    describes its tensors again: equal texts and vectors beside the constants are written once.
    """
    import flatbuffers
    import numpy as np

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1024)
            self.written: dict[Any, int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:
            if x.dtype == np.uint8:
                self.Prep(16, x.size)
                return int(self.CreateByteVector(x.tobytes()))
            return self._once((x.dtype.str, x.tobytes()), super().CreateNumpyVector, x)

        def CreateString(self, s: Any, *args: Any) -> int:
            return self._once(s, super().CreateString, s, *args)

        def _once(self, key: Any, write: Callable[..., int], *values: Any) -> int:
            if key not in self.written:
                self.written[key] = int(write(*values))
            return self.written[key]

    builder = Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
