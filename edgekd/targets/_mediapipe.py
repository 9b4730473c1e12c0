"""A .tflite file as MediaPipe's text tasks take it: one graph, three inputs, tokenizer and labels packed behind it.

The layers and their constants are the artefact's. Added are what MediaPipe asks for: an input ``segment_ids`` that
nothing reads, a DEQUANTIZE where the logits are int8, a SOFTMAX where the answer is a class, because MediaPipe shows
the output as scores, and the metadata by which it finds inputs, vocabulary and labels
(tflite/metadata_schema.fbs; the files lie in a zip archive behind the model, not compressed).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgekd.targets._litert_passes import _File, written

if TYPE_CHECKING:
    import numpy as np

INPUTS = {"input_ids": "ids", "attention_mask": "mask"}  # ours, and what MediaPipe's metadata calls them
SEGMENTS, VOCABULARY, LABELS = "segment_ids", "vocab.txt", "labels.txt"
OUTPUTS = {"text-classification": "probability", "sentence-similarity": "embedding"}
BOUND = 1e-5  # of a score or a number of an embedding: the same graph, and a softmax by another's exponential

# The schema's tables: a field by the number of its slot.
MODEL = {"name": 0, "description": 1, "version": 2, "subgraph_metadata": 3, "license": 5, "min_parser_version": 7}
SUBGRAPH = {"input_tensor_metadata": 2, "output_tensor_metadata": 3, "input_process_units": 5}
TENSOR = {"name": 0, "description": 1, "content": 3, "associated_files": 6}
CONTENT = UNIT = {"type": 0, "value": 1}  # a union: which table, and the table
FILE = {"name": 0, "description": 1, "type": 2}
TOKENIZER = {"vocab_file": 0}
FEATURE, BERT_TOKENIZER = 1, 4  # of the unions
AXIS_LABELS, WORDS = 2, 5  # kinds of files
PARSER = "1.1.0"  # the metadata's first version with tokenizers


def spell(content: bytes, *, task: str, name: str, words: Sequence[str], labels: Sequence[str]) -> bytes:
    """A file of one graph for a task of ``OUTPUTS``, ``words`` by id, ``labels`` by class id; the same, same bytes."""
    file = _File(content)
    (signature,), graph = file.model.signatureDefs, file.graph
    given = {one.name.decode(): one for one in signature.inputs}
    first = graph.tensors[given["input_ids"].tensorIndex]
    segments = file._computed(SEGMENTS, first.shape, first.type)
    graph.tensors[segments].shapeSignature = first.shapeSignature
    signature.inputs.append(_mapped(file, SEGMENTS, segments))
    graph.inputs = [given[one].tensorIndex for one in INPUTS] + [segments]
    (shown,) = signature.outputs
    shown.name, shown.tensorIndex = OUTPUTS[task].encode(), _answer(file, shown.tensorIndex, task)
    graph.outputs = [shown.tensorIndex]
    _put(file, "TFLITE_METADATA", _metadata(task, name))
    files = {VOCABULARY: words} | ({LABELS: labels} if _has_labels(task) else {})
    return _packed(written(file.model), files)


def expected(logits: np.ndarray, task: str) -> np.ndarray:
    """What the spelled file gives for the artefact's logits."""
    import numpy as np

    if not _has_labels(task):
        return logits
    shares = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def _answer(file: _File, index: int, task: str) -> int:
    """The output's tensor behind the operators that MediaPipe needs after it."""
    kinds, schema = file.schema.TensorType, file.schema
    shape = file.graph.tensors[index].shape
    if file.graph.tensors[index].type != kinds.FLOAT32:
        floats = file._computed("float_logits", shape, kinds.FLOAT32)
        file.graph.operators.append(file._operator("DEQUANTIZE", [index], [floats], schema.DequantizeOptionsT()))
        index = floats
    if _has_labels(task):
        shares = file._computed(OUTPUTS[task], shape, kinds.FLOAT32)
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        file.graph.operators.append(file._operator("SOFTMAX", [index], [shares], options))
        index = shares
    return index


def _mapped(file: _File, name: str, index: int) -> Any:
    one = file.schema.TensorMapT()
    one.name, one.tensorIndex = name.encode(), index
    return one


def _put(file: _File, name: str, content: bytes) -> None:
    import numpy as np

    buffer, entry = file.schema.BufferT(), file.schema.MetadataT()
    buffer.data = np.frombuffer(content, np.uint8)
    file.model.buffers.append(buffer)
    entry.name, entry.buffer = name.encode(), len(file.model.buffers) - 1
    file.model.metadata = [*(file.model.metadata or []), entry]


def _metadata(task: str, name: str) -> bytes:
    import flatbuffers

    feature = {CONTENT["type"]: FEATURE, CONTENT["value"]: {}}
    told = {"ids": "Token ids.", "mask": "1 for a token, 0 for padding.", SEGMENTS: "Not read."}
    inputs = [
        {TENSOR["name"]: one, TENSOR["description"]: text, TENSOR["content"]: feature} for one, text in told.items()
    ]
    output: dict[int, Any] = {TENSOR["name"]: OUTPUTS[task], TENSOR["content"]: feature}
    if _has_labels(task):
        output[TENSOR["associated_files"]] = [{FILE["name"]: LABELS, FILE["type"]: AXIS_LABELS}]
    tokenizer = {TOKENIZER["vocab_file"]: [{FILE["name"]: VOCABULARY, FILE["type"]: WORDS}]}
    graph = {
        SUBGRAPH["input_tensor_metadata"]: inputs,
        SUBGRAPH["output_tensor_metadata"]: [output],
        SUBGRAPH["input_process_units"]: [{UNIT["type"]: BERT_TOKENIZER, UNIT["value"]: tokenizer}],
    }
    model = {MODEL["name"]: name, MODEL["subgraph_metadata"]: [graph], MODEL["min_parser_version"]: PARSER}
    builder = flatbuffers.Builder(1024)
    builder.Finish(_built(builder, model), b"M001")
    return bytes(builder.Output())


def _built(builder: Any, value: str | list[Any] | Mapping[int, Any]) -> int:
    """A string, a vector of such, or a table by its slots; where it lies. A number in a slot is a byte."""
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, list):
        places = [_built(builder, one) for one in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return int(builder.EndVector())
    made = {slot: one if isinstance(one, int) else _built(builder, one) for slot, one in value.items()}
    builder.StartObject(max(value, default=-1) + 1)
    for slot, one in made.items():
        if isinstance(value[slot], int):
            builder.PrependInt8Slot(slot, one, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, one, 0)
    return int(builder.EndObject())


def _has_labels(task: str) -> bool:
    return task == "text-classification"


def _packed(content: bytes, files: Mapping[str, Sequence[str]]) -> bytes:
    """``content`` with an archive of ``files`` behind it, by their lines."""
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_STORED) as archive:
        for name, lines in files.items():
            archive.writestr(zipfile.ZipInfo(name), "".join(f"{line}\n" for line in lines))
    return whole.getvalue()
