"""Writing text: what the runner beside this file opens in the phase ``write``, one class per runtime.

A writer holds one artefact and its cache of keys and values. ``reset`` empties the cache (not timed), ``feed`` reads a
prompt or one token more and returns the likeliest next token (of equal logits the lowest id). Each runtime is a
function that imports its packages (not timed) and returns what loads the model (timed), as in the runner.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edgekd_runner import RunnerError, onnx_options, require  # the runner, whatever its file is called here

Ids = list[int]


class Writer(Protocol):
    """``context``: tokens that the cache holds. ``observed``: what else the runtime tells."""

    context: int
    observed: dict[str, Any]

    def reset(self) -> None: ...

    def feed(self, ids: Ids) -> int: ...


def _likeliest(logits: Any) -> int:
    """The first of the largest of ``logits`` [V] (numpy)."""
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):  # argmax stops at a NaN
        raise RunnerError("failed", "the model's output has a number that is not finite")
    return best


def _onnx(job: dict[str, Any]) -> Callable[[], Writer]:
    runtime, np = require("onnxruntime", "onnxruntime"), require("numpy", "numpy")
    value = runtime.OrtValue.ortvalue_from_numpy

    class Onnx:
        """A decoder whose attention writes into its cache: past and present are one buffer of the context's length."""

        def __init__(self) -> None:
            options, told = onnx_options(job)
            self.context = job["context"]
            self._session = runtime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
            self._binding = self._session.io_binding()
            for one in self._session.get_inputs():
                if one.name.startswith("past_key_values."):
                    _, heads, _, width = one.shape
                    if not isinstance(width, int):
                        raise RunnerError("failed", f"'{one.name}' does not say how wide a head is: export it again")
                    cache = value(np.zeros((1, heads, self.context, width), np.float32))
                    self._binding.bind_ortvalue_input(one.name, cache)
                    self._binding.bind_ortvalue_output(one.name.replace("past_key_values", "present"), cache)
            (self._words,) = (one.shape[2] for one in self._session.get_outputs() if one.name == "logits")
            self._mask = np.ones((1, self.context), np.int64)
            self.observed = {"backend": self._session.get_providers()[0], "threads": job["threads"], **told}

        def reset(self) -> None:
            self._fed = 0

        def feed(self, ids: Ids) -> int:
            self._fed += len(ids)
            logits = np.empty((1, len(ids), self._words), np.float32)
            self._binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
            self._binding.bind_cpu_input("attention_mask", self._mask[:, : self._fed])
            self._binding.bind_ortvalue_output("logits", value(logits))
            self._session.run_with_iobinding(self._binding)
            return _likeliest(logits[0, -1])

    return Onnx


def _text2text(job: dict[str, Any]) -> Callable[[], Writer]:
    runtime, np = require("onnxruntime", "onnxruntime"), require("numpy", "numpy")
    folder = Path(job["model"])

    class Text2Text:
        """Two graphs. A prompt is a source; what is fed follows the token that the decoder starts with."""

        def __init__(self) -> None:
            options, told = onnx_options(job)
            self._encoder, self._decoder = (
                runtime.InferenceSession(str(folder / "onnx" / file), options, providers=["CPUExecutionProvider"])
                for file in ("encoder_model.onnx", "decoder_model_merged.onnx")
            )
            config, writing = (_settings(folder / f"{name}.json") for name in ("config", "generation_config"))
            start = writing.get("decoder_start_token_id", config.get("decoder_start_token_id"))
            if start is None:
                raise RunnerError("failed", "neither generation_config.json nor config.json has decoder_start_token_id")
            self._start, held = int(start), config.get("max_position_embeddings")
            self.context = min(job["context"], held) if held else job["context"]
            self._empty = {
                one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
                for one in self._decoder.get_inputs()
                if one.name.startswith("past_key_values.")
            }
            outputs = [one.name for one in self._decoder.get_outputs() if one.name != "logits"]
            self._first = ["logits", *outputs]
            self._later = ["logits", *(name for name in outputs if ".encoder." not in name)]  # the source's stay
            self.observed = {"backend": self._decoder.get_providers()[0], "threads": job["threads"], **told}

        def reset(self) -> None:
            self._given: dict[str, Any] = {}

        def feed(self, ids: Ids) -> int:
            if self._given:
                return self._run(ids[0], self._later)
            source = np.array([ids], np.int64)
            mask = np.ones_like(source)
            (states,) = self._encoder.run(["last_hidden_state"], {"input_ids": source, "attention_mask": mask})
            self._given = {"encoder_hidden_states": states, "encoder_attention_mask": mask, **self._empty}
            return self._run(self._start, self._first)

        def _run(self, token: int, wanted: list[str]) -> int:
            self._given["input_ids"] = np.array([[token]], np.int64)
            self._given["use_cache_branch"] = np.array([wanted is self._later])
            logits, *present = self._decoder.run(wanted, self._given)
            for name, one in zip(wanted[1:], present, strict=True):
                self._given[name.replace("present", "past_key_values")] = one
            return _likeliest(logits[0, -1])

    return Text2Text


def _settings(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _litert(job: dict[str, Any]) -> Callable[[], Writer]:
    compiled = require("ai_edge_litert.compiled_model", "ai-edge-litert")
    np = require("numpy", "numpy")
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator
    from ai_edge_litert.options import CpuOptions, Options

    decode, prefill, told = "decode", "prefill_", ("tokens", "input_pos", "mask")
    masked = np.float32(-0.7 * 3.4028235e38)  # two of them are still a number

    class LiteRT:
        """The graphs of a LiteRT-LM model (``decode``, ``prefill_<n>``) around one cache, written where it is read."""

        def __init__(self) -> None:
            options = Options(HardwareAccelerator.CPU, cpu_options=CpuOptions(num_threads=job["threads"]))
            self._model = model = compiled.CompiledModel.from_file(job["model"], options=options)
            names = model.get_signature_list()
            if decode not in names:
                raise RunnerError("failed", f"the file has no graph '{decode}' (it has {', '.join(names)})")
            self._sizes = sorted(int(name[len(prefill) :]) for name in names if name.startswith(prefill))
            details = model.get_input_tensor_details(decode)
            self._places = int(details["mask"]["shape"][-1])
            self.context = min(job["context"], self._places)
            self._cache = {
                name: model.create_input_buffer_by_name(decode, name) for name in details if name not in told
            }
            for name, buffer in self._cache.items():
                buffer.write(np.zeros(details[name]["shape"], np.float32))
            self._inputs = {graph: [model.create_input_buffer_by_name(graph, name) for name in told] for graph in names}
            self._words = int(model.get_output_tensor_details(decode)["logits"]["shape"][-1])
            self._logits = model.create_output_buffer_by_name(decode, "logits")
            self.observed = {"backend": "XNNPACK", "threads": job["threads"], "prefill": self._sizes}

        def reset(self) -> None:
            self._fed = 0

        def feed(self, ids: Ids) -> int:
            ahead = ids[:-1]
            while ahead:
                fitting = [size for size in self._sizes if self._fed + size <= self._places]  # padding fills it too
                size = min([size for size in fitting if size >= len(ahead)], default=max(fitting, default=1))
                self._run(f"{prefill}{size}" if fitting else decode, ahead[:size], size)
                ahead = ahead[size:]
            self._run(decode, ids[-1:], 1)
            return _likeliest(self._logits.read(self._words, np.float32))

        def _run(self, graph: str, ids: Ids, size: int) -> None:
            tokens = np.zeros((1, size), np.int32)
            tokens[0, : len(ids)] = ids
            places = np.arange(self._fed, self._fed + size, dtype=np.int32)
            mask = np.where(np.arange(self._places) <= places[:, None], np.float32(0), masked)[None, None]
            for buffer, one in zip(self._inputs[graph], (tokens, places, mask), strict=True):
                buffer.write(one)
            given = dict(zip(told, self._inputs[graph], strict=True))
            outputs = {**self._cache, "logits": self._logits} if graph == decode else self._cache
            self._model.run_by_name(graph, {**given, **self._cache}, outputs)
            self._fed += len(ids)

    return LiteRT


def _executorch(job: dict[str, Any]) -> Callable[[], Writer]:
    torch = require("torch", "torch")
    runtime = require("executorch.runtime", "executorch")
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401 - attention with a cache
    from executorch.extension.pybindings import portable_lib

    torch.set_num_threads(job["threads"])
    portable_lib._unsafe_reset_threadpool(job["threads"])

    class ExecuTorch:
        """A program for ExecuTorch's LLM runner, ``forward(ids [1, S], position [1])``; the cache is inside."""

        def __init__(self) -> None:
            self._program = runtime.Runtime.get().load_program(
                Path(job["model"]), verification=runtime.Verification.InternalConsistency
            )
            self._method = self._program.load_method("forward")
            held = int(self._program.load_method("get_max_context_len").execute([])[0])
            self.context = min(job["context"], held)
            self.observed = {"backend": "XnnpackBackend", "threads": portable_lib._threadpool_get_thread_count()}

        def reset(self) -> None:
            self._fed = 0  # attention reads no further than it was fed

        def feed(self, ids: Ids) -> int:
            (logits,) = self._method.execute([torch.tensor([ids]), torch.tensor([self._fed])])
            self._fed += len(ids)
            return _likeliest(logits.numpy()[0])

    return ExecuTorch


def _gguf(job: dict[str, Any]) -> Callable[[], Writer]:
    lib, np = require("llama_cpp", "llama-cpp-python"), require("numpy", "numpy")
    quiet = lib.llama_log_callback(lambda level, text, user: None)
    lib.llama_log_set(quiet, None)

    class LlamaCpp:
        """llama.cpp through llama-cpp-python's C functions, its default cache (keys and values in fp16)."""

        _quiet = quiet  # llama.cpp keeps a pointer to it

        def __init__(self) -> None:
            options, settings = lib.llama_model_default_params(), lib.llama_context_default_params()
            options.n_gpu_layers = 0
            self._model = lib.llama_model_load_from_file(job["model"].encode(), options)
            if not self._model:
                raise RunnerError("failed", "llama.cpp does not load the file")
            self.context = min(job["context"], lib.llama_model_n_ctx_train(self._model))
            settings.n_ctx = self.context
            settings.n_batch = settings.n_ubatch = self._together = min(512, self.context)
            settings.n_threads = settings.n_threads_batch = job["threads"]
            self._state = lib.llama_init_from_model(self._model, settings)
            if not self._state:
                raise RunnerError("failed", "llama.cpp gives no context for the file")
            self._words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
            self._batch = lib.llama_batch_init(self._together, 0, 1)
            system = lib.llama_print_system_info().decode()
            self.observed = {"backend": "CPU", "threads": lib.llama_n_threads(self._state), "system": system}

        def reset(self) -> None:
            lib.llama_memory_clear(lib.llama_get_memory(self._state), False)  # what is not zeroed is not read
            self._fed = 0

        def feed(self, ids: Ids) -> int:
            batch = self._batch
            for start in range(0, len(ids), self._together):
                some = ids[start : start + self._together]
                batch.n_tokens = len(some)
                for place, token in enumerate(some):
                    batch.token[place], batch.pos[place] = token, self._fed + place
                    batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                    batch.logits[place] = start + place + 1 == len(ids)
                if status := lib.llama_decode(self._state, batch):
                    raise RunnerError("failed", f"llama_decode says {status}")
                self._fed += len(some)
            logits = lib.llama_get_logits_ith(self._state, len(some) - 1)
            return _likeliest(
                np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self._words,))
            )

    return LlamaCpp


WRITERS = {"onnx": _onnx, "onnxruntime": _text2text, "litert": _litert, "executorch": _executorch, "gguf": _gguf}
DISTRIBUTIONS = {
    "onnx": ("onnxruntime",),
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai-edge-litert",),
    "executorch": ("executorch", "torch"),
    "gguf": ("llama-cpp-python",),
}
