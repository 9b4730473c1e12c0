"""Core ML: a stateful ML Program of iOS 18, whose cache of keys and values stays in the model as states.

The Program's integers and scales stand in the package as constant expressions, int8 rows and int4 blocks of 32. The
converter takes scales that are given with a weight and divides by them: since the weight is integer * scale, rounding
returns the integers, and reading the package back proves it.

Arithmetic is float32 as in all Core ML artefacts of edgekd; states are halves, because Core ML has no others.
``causalMask`` [1, 1, S, end] says by its length where the new tokens stand, as Apple's own models do.

On a Mac the session is Apple's runtime. Elsewhere the saved file is read back and evaluated in numpy, as that of a
target is (``targets/coreml.py``): it proves what the file says, not what Apple's kernels make of it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts
from edgekd.errors import StepFailed
from edgekd.generators import _contract
from edgekd.generators._contract import MODEL, Numbers
from edgekd.registry import require
from edgekd.targets.coreml import REFERENCE, normalise

if TYPE_CHECKING:
    import numpy as np
    import torch

suffix = ".mlpackage"
extra = "coreml"
tasks = frozenset({"text-generation"})
distributions = ("coremltools", "torch")
accepts = frozenset({"fp32", "w8", "w4"})
refuses: Mapping[str, str] = {"w8a8-dynamic": "Core ML computes with float activations here; w8 has the same weights"}
runs = sys.platform == "darwin"
block = 1

FILE, TOKENIZER = f"model{suffix}", ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
IDS, MASK, LOGITS = "inputIds", "causalMask", "logits"
KEYS, VALUES = "keyCache", "valueCache"  # and the index of a layer
TABLE, HEAD = "model.embed_tokens", "lm_head"
MASKED = -1e4  # exp of it is 0, and it is a number in halves
WHOLE = (
    "test rows are evaluated in one piece, without the cut that leaves the last token to the head; prompts and what is "
    "written as the file says"
)
QUANTIZED = 3  # coremltools' name for linear quantization in `_COREML_/weight/compression_type`


def check(config: Any) -> None:
    """Llama, Qwen2 and Qwen3. Raises BadInput for others."""
    from edgekd.generators import _decoder

    _decoder.check(config, "Core ML")


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.mlpackage`` and the tokenizer. ``max_length`` tokens fill the cache."""
    require("coremltools", extra)
    import coremltools as ct
    import numpy as np
    import torch

    config = _contract.read_config(program)
    check(config)
    module = _stateful(program, max_length)
    given = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 5)
    with torch.no_grad():
        traced = torch.jit.trace(module, given, check_trace=False)
    length, end = (ct.RangeDim(1, max_length, default=1) for _ in range(2))
    shape = (1, module.shared_heads, max_length, module.head_dim)
    package: Any = ct.convert(
        traced,
        inputs=[
            ct.TensorType(IDS, (1, length), dtype=np.int32),
            ct.TensorType(MASK, (1, 1, length, end), dtype=np.float32),
        ],
        outputs=[ct.TensorType(LOGITS, dtype=np.float32)],
        states=[
            ct.StateType(ct.TensorType(shape=shape, dtype=np.float16), name=name)
            for name in _states(module.layers_count)
        ],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.transform.FP16ComputePrecision(op_selector=_of_the_cache),
        skip_model_load=True,
    )
    package.save(str(out / FILE))
    normalise(out / FILE, [IDS, MASK])
    for name in TOKENIZER:
        if (program / MODEL / name).is_file():
            shutil.copyfile(program / MODEL / name, out / name)
    return {
        "file": FILE,
        "architecture": config.model_type,
        "context": max_length,
        "max_length": max_length,
        "state": list(shape),
    }


def _states(layers: int) -> list[str]:
    return [f"{name}_{index}" for index in range(layers) for name in (KEYS, VALUES)]


def _of_the_cache(operation: Any) -> bool:
    """Whether an operator of MIL writes or reads a state: these work on halves, or a token would cast all of it."""
    if operation.op_type == "slice_by_index":
        return operation.x.op is not None and operation.x.op.op_type == "slice_update"
    return operation.op_type == "slice_update"


def _stateful(program: Path, size: int) -> Any:
    """``forward(ids [1, S], mask [1, 1, S, end]) -> logits [1, 1, V]`` after the last, with a cache of ``size`` tokens.

    Its quantized weights are floats, with their scales beside them as coremltools looks for them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from edgekd.generators._decoder import Decoder

    model: Any = AutoModelForCausalLM.from_pretrained(program / MODEL, dtype=torch.float32)
    model.eval().requires_grad_(False)
    numbers = _contract.read_numbers(program)
    if HEAD not in numbers and TABLE in numbers and model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
        numbers[HEAD] = numbers[TABLE]
    for name, (_, scale_OG) in numbers.items():
        module = model.get_submodule(name)
        told = {
            "compression_type": torch.tensor([QUANTIZED]),
            "quantization_n_bits": torch.tensor(8 if scale_OG.shape[1] == 1 else 4),
            "quantization_scale": torch.from_numpy(scale_OG),
        }
        for key, value in told.items():
            module.register_buffer(f"_COREML_/weight/{key}", value)

    class Stateful(Decoder):
        def __init__(self) -> None:
            super().__init__(model, size)
            self.register_buffer("_COREML_/metadata_version", torch.tensor(1))
            for name in _states(self.layers_count):
                self.register_buffer(name, torch.zeros(1, self.shared_heads, size, self.head_dim))

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            end = mask.shape[-1]
            begin = end - ids.shape[-1]
            repeats = self.heads // self.shared_heads

            def attend(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                keys, values = (getattr(self, f"{name}_{index}") for name in (KEYS, VALUES))
                keys[:, :, begin:end] = k.transpose(1, 2)
                values[:, :, begin:end] = v.transpose(1, 2)
                known, said = keys[:, :, :end], values[:, :, :end]
                q = q.transpose(1, 2).reshape(1, self.shared_heads, repeats, -1, self.head_dim)
                scores = q @ known.transpose(2, 3).unsqueeze(2) * self.scaling + mask.unsqueeze(1)
                found = torch.softmax(scores, -1) @ said.unsqueeze(2)
                return found.reshape(1, self.heads, -1, self.head_dim).transpose(1, 2)

            h = self.hidden(ids, self.cos[begin:end], self.sin[begin:end], attend)
            found: torch.Tensor = self.head(h[:, -1:])
            return found

    return Stateful().eval()


# What the file holds.


def numbers(artifact: Path) -> Numbers:
    """Integers and scales of the package's constant expressions."""
    import numpy as np

    from edgekd.targets._mil import load_mil

    require("coremltools", extra)
    (function,) = load_mil(artifact / FILE).functions.values()
    found: Numbers = {}
    for one in function.operations:
        if one.op_type != "constexpr_blockwise_shift_scale":
            continue
        if one.offset is not None and np.any(one.offset.val):
            raise StepFailed(f"'{one.name}' has an offset", where=str(artifact / FILE))
        name = _parameter(one.name)
        values = np.asarray(one.data.val).astype(np.int8)
        found[name] = values, np.asarray(one.scale.val).astype(np.float32)
    head = found.pop(HEAD, None)
    if head is not None:
        table = found.get(TABLE)
        if table is None or not all(np.array_equal(*both) for both in zip(table, head, strict=True)):
            found[HEAD] = head
    return found


def _parameter(name: str) -> str:
    """``layers_0_self_attn_q_proj_weight`` -> ``model.layers.0.self_attn.q_proj``."""
    import re

    parts = re.match(r"layers_(\d+)_(self_attn|mlp)_(\w+_proj)_weight", name)
    if parts:
        return "model.layers.{}.{}.{}".format(*parts.groups())
    return TABLE if name.startswith("table_") else HEAD if name.startswith("head_") else name


# The runtime.


def golden_bound(scheme: str, logit_range: float) -> float:
    """0.5 % of the range: only the cache is in halves, 2**-11 of a number each; see ``gguf.golden_bound``."""
    return 0.005 * logit_range


class Session(_contract.Cached):
    """What both sessions have in common: positions and masks. No mask reaches further than what was fed."""

    observed: Facts
    holder = "package"

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]."""
        import numpy as np

        return np.asarray(self._logits(self._inputs(ids)), np.float32)[0, -1].copy()

    def _inputs(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Of the next tokens, which count as fed from here on."""
        import numpy as np

        self._room(len(ids))
        end = self._fed + len(ids)
        seen = np.arange(end) <= np.arange(self._fed, end)[:, None]
        mask = np.where(seen, 0, MASKED).astype(np.float32)[None, None]
        self._fed = end
        return {IDS: np.array([list(ids)], np.int32), MASK: mask}

    def _logits(self, inputs: Mapping[str, np.ndarray]) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Free model and cache."""


class AppleSession(Session):
    """Apple's runtime, on a Mac of macOS 15 or later."""

    def __init__(self, artifact: Path) -> None:
        import platform

        import coremltools as ct

        self._model: Any = ct.models.MLModel(str(artifact / FILE), compute_units=ct.ComputeUnit.CPU_ONLY)
        self._state: Any = self._model.make_state()
        super().__init__(_size(artifact))
        self.observed = {
            "runtime": "Core ML",
            "version": f"macOS {platform.mac_ver()[0]}",
            "threads": None,
            "max_length": self._size,
            "caveats": ["cache of keys and values in fp16", "Core ML chooses its own number of threads"],
        }

    def _logits(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self._model.predict(dict(inputs), state=self._state)[LOGITS]

    def close(self) -> None:
        """Free model and cache."""
        self._model = self._state = None


class ReferenceSession(Session):
    """The MIL reference evaluation of the saved file, its states in numpy."""

    def __init__(self, artifact: Path) -> None:
        from importlib.metadata import version

        from edgekd.targets._mil import Evaluation

        self._evaluation: Any = Evaluation(artifact / FILE, integers=False)
        self._evaluation.reset()
        self._cut = self._evaluation.last("slice_by_index")
        super().__init__(_size(artifact))
        self.observed = {
            "runtime": "MIL reference evaluation (not Apple's runtime)",
            "version": f"coremltools {version('coremltools')}",
            "provider": "numpy",
            "threads": None,
            "max_length": self._size,
            "caveats": [REFERENCE, WHOLE, "cache of keys and values in fp16"],
        }

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of these tokens, float32 [S, V], from an empty cache; in one piece, see ``WHOLE``."""
        self.reset()
        logits: np.ndarray = self._evaluation(self._inputs(ids), without=self._cut)[0]
        return logits

    def _logits(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self._evaluation(inputs)


def _size(artifact: Path) -> int:
    """Tokens that the cache of a package holds."""
    from edgekd.targets._mil import load_specification

    states = load_specification(artifact / FILE).description.state
    return int(states[0].type.stateType.arrayType.shape[2])


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open ``artifact/model.mlpackage``: Apple's runtime on a Mac, the MIL reference evaluation elsewhere.

    Neither takes a thread count.
    """
    require("coremltools", extra)
    try:
        return AppleSession(artifact) if runs else ReferenceSession(artifact)
    except Exception as error:  # coremltools, protobuf and Apple's runtime raise anything for a broken package
        raise StepFailed(f"Core ML package cannot be opened ({error})", where=str(artifact / FILE)) from None
