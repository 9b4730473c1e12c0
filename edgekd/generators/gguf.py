"""GGUF for llama.cpp: Llama and Qwen models in one file with tokenizer and chat template.

llama.cpp's block formats hold 32 numbers beside a scale in fp16. int4 groups of 32 are Q4_0 blocks (integers stored
with 8 added); int8 rows are Q8_0 blocks that repeat the row's scale. The Program's scales are fp16 numbers, so both
hold what the Program holds, and nothing is rounded. A tied head is no tensor: llama.cpp multiplies by the word table.

llama.cpp turns neighbouring channels of Llama's queries and keys together, transformers channels half a head apart:
their rows change places, integers and scales alike. Reading back undoes it. It is opened through llama-cpp-python.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.artifact import Facts, read_json
from edgekd.errors import BadInput, StepFailed
from edgekd.generators import _contract
from edgekd.generators._contract import BLOCK, MODEL, Numbers, check_type, head_dim
from edgekd.registry import require

if TYPE_CHECKING:
    import numpy as np

suffix = ".gguf"
extra = "gguf"
tasks = frozenset({"text-generation"})
distributions = ("gguf", "llama-cpp-python")
accepts = frozenset({"fp32", "w8", "w4"})
refuses: Mapping[str, str] = {
    "w8a8-dynamic": "llama.cpp rounds activations by blocks of 32, not by token; w8 has the same weights",
}
runs = True
block = 32

FILE = f"model{suffix}"
TYPES = ("llama", "qwen2", "qwen3")  # as transformers and llama.cpp call them
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TURNED = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
# How a tokenizer.json cuts a text into words -> llama.cpp's names for it, without and with `ignore_merges`
PRE_TOKENIZERS: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    ("bytes of words",): ("gpt-2", None),
    ("digits", "bytes of words"): ("smollm", None),
    (QWEN2, "bytes"): ("qwen2", None),
    (LLAMA3, "bytes"): ("dbrx", "llama-bpe"),
}
BLOCKS = "activations of integer weights in blocks of 32 int8"
LOG_ERROR = 4  # of ggml's levels
CONTEXT, BATCH = 4096, 512  # tokens that a session's cache holds at most, and that it computes at once


def check(config: Any) -> None:
    """Llama, Qwen2 and Qwen3, with plain, linear or (Llama) llama3 rotations. Raises BadInput for others."""
    check_type(config, TYPES, "GGUF")
    kind = config.rope_parameters.get("rope_type", "default")
    known = ("default", "linear", *(["llama3"] if config.model_type == "llama" else []))
    if kind not in known:
        raise BadInput(
            f"GGUF is not written for rope type '{kind}' of {config.model_type} yet",
            where="config.json",
            todo=f"Known: {', '.join(known)}.",
        )
    if config.model_type == "qwen2" and head_dim(config) * config.num_attention_heads != config.hidden_size:
        raise BadInput(
            f"llama.cpp has no Qwen2 whose heads ({config.num_attention_heads} of {head_dim(config)}) do not fill "
            f"hidden_size {config.hidden_size}",
            where="config.json",
            todo="Cut hidden_size and heads alike, or drop the target.",
        )
    if config.model_type == "qwen3" and config.attention_bias:
        raise BadInput("llama.cpp has no Qwen3 with attention_bias", where="config.json")
    if config.hidden_act != "silu":
        raise BadInput(f"llama.cpp computes silu here, not {config.hidden_act}", where="config.json")


def export(program: Path, out: Path, *, max_length: int) -> Facts:
    """Write ``out/model.gguf``. ``max_length`` changes nothing: the file takes as many tokens as the model."""
    gguf = require("gguf", extra)
    config, numbers = _contract.read_config(program), _contract.read_numbers(program)
    check(config)
    tied = set() if "lm_head" in numbers or not config.tie_word_embeddings else {"lm_head.weight"}
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(out / FILE, config.model_type)
    _describe(writer, gguf, config)
    words = _tokenizer(writer, gguf, program, config)
    kinds: dict[str, int] = {}
    for parameter, weight in _contract.read_weights(program).items():
        if parameter in tied:
            continue
        name, _, part = parameter.rpartition(".")
        rows = _rows(name, config, len(weight))
        held = numbers.get(name) if part == "weight" else None
        if held is None:
            writer.add_tensor(_called(name, part), weight if rows is None else weight[rows])
        else:
            weight_q, scale_OG = held if rows is None else (held[0][rows], held[1][rows])
            blocks, kind = packed(weight_q, scale_OG, name)
            kinds[kind] = kinds.get(kind, 0) + 1
            writer.add_tensor(_called(name, part), blocks, raw_dtype=types[kind])
    factors = _llama3(config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    usual = gguf.LlamaFileType
    writer.add_file_type(usual.MOSTLY_Q4_0 if "Q4_0" in kinds else usual.MOSTLY_Q8_0 if kinds else usual.ALL_F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {
        "file": FILE,
        "architecture": config.model_type,
        "blocks": kinds,
        "context": config.max_position_embeddings,
        "max_length": max_length,
        **words,
    }


def packed(weight_q: np.ndarray, scale_OG: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Blocks of llama.cpp, uint8 [O, bytes of a row], and their type: Q8_0 for one scale a row, else Q4_0.

    Raises BadInput where a row does not fill its blocks, or a scale is no fp16 number.
    """
    import numpy as np

    outputs, inputs = weight_q.shape
    if inputs % BLOCK:
        raise BadInput(
            f"'{name}' has {inputs} inputs; blocks of GGUF hold {BLOCK}",
            where="distill.student",
            todo=f"Make hidden_size, intermediate_size and the heads multiples of {BLOCK}.",
        )
    blocks = inputs // BLOCK
    scale = np.broadcast_to(scale_OG, (outputs, blocks)).astype("<f2")
    if not np.array_equal(scale.astype(np.float32), np.broadcast_to(scale_OG, scale.shape)):
        raise BadInput(f"scales of '{name}' are no numbers of fp16, in which GGUF holds them", where="the Program")
    scale_bytes = np.ascontiguousarray(scale[..., None]).view(np.uint8)
    rows = weight_q.reshape(outputs, blocks, BLOCK)
    if scale_OG.shape[1] == 1:
        body, kind = rows.view(np.uint8), "Q8_0"
    else:
        unsigned: np.ndarray = (rows + 8).astype(
            np.uint8
        )  # the first half of a block in low nibbles, the second in high ones
        body, kind = unsigned[..., : BLOCK // 2] | unsigned[..., BLOCK // 2 :] << 4, "Q4_0"
    return np.concatenate([scale_bytes, body], -1).reshape(outputs, -1), kind


def unpacked(raw: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 [O, I] and scales float32 [O, I / 32] of blocks as ``packed`` makes them."""
    import numpy as np

    blocks = raw.reshape(len(raw), -1, 2 + (BLOCK if kind == "Q8_0" else BLOCK // 2))
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    body = blocks[..., 2:]
    if kind == "Q4_0":
        body = np.concatenate([body & 15, body >> 4], -1)
        body = body - np.uint8(8)
    return np.ascontiguousarray(body).view(np.int8).reshape(len(raw), -1), scale


def numbers(artifact: Path) -> Numbers:
    """Integers and scales of the file's blocks; those of int8 rows [O, 1] where all blocks of a row have one scale."""
    import numpy as np

    gguf = require("gguf", extra)
    reader = gguf.GGUFReader(artifact / FILE)
    config = _shape(reader)
    found: Numbers = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in ("Q4_0", "Q8_0"):
            continue
        weight_q, scale = unpacked(np.asarray(tensor.data), kind)
        if kind == "Q8_0" and (scale == scale[:, :1]).all():
            scale = scale[:, :1]
        name = _parameter(tensor.name)
        rows = _rows(name, config, len(weight_q))
        if rows is not None:
            back = np.argsort(rows)
            weight_q, scale = weight_q[back], scale[back]
        found[name] = weight_q, scale
    return found


class _Shape:
    """The part of a configuration that places rows, read back from a file."""

    def __init__(self, model_type: str, num_attention_heads: int, num_key_value_heads: int) -> None:
        self.model_type = model_type
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads


def _shape(reader: Any) -> _Shape:
    kind = reader.fields["general.architecture"].contents()
    heads, shared = (reader.fields[f"{kind}.attention.{name}"].contents() for name in ("head_count", "head_count_kv"))
    return _Shape(kind, heads, shared)


def _called(name: str, part: str) -> str:
    """llama.cpp's name of a parameter."""
    if name in NAMES:
        return f"{NAMES[name]}.{part}"
    _, _, number, layer = name.split(".", 3)
    if layer not in LAYER:
        raise BadInput(f"llama.cpp has no place for '{name}'", where="the student")
    return f"blk.{number}.{LAYER[layer]}.{part}"


def _parameter(called: str) -> str:
    """The inverse of ``_called``, without the part."""
    name = called.rpartition(".")[0]
    if not name.startswith("blk."):
        return next(ours for ours, theirs in NAMES.items() if theirs == name)
    _, number, layer = name.split(".")
    return f"model.layers.{number}.{next(ours for ours, theirs in LAYER.items() if theirs == layer)}"


def _rows(name: str, config: Any, count: int) -> np.ndarray | None:
    """Where llama.cpp's rows lie among ours, or None where they are the same: queries and keys of Llama only."""
    import numpy as np

    heads = TURNED.get(name.split(".", 3)[-1]) if config.model_type == "llama" else None
    if heads is None:
        return None
    return np.arange(count).reshape(getattr(config, heads), 2, -1).swapaxes(1, 2).reshape(-1)


def _describe(writer: Any, gguf: Any, config: Any) -> None:
    """Sizes, norms and rotations. Raises BadInput for what llama.cpp would ignore."""
    writer.add_type("model")
    writer.add_name("edgekd student")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _llama3(config: Any) -> np.ndarray | None:
    """What llama.cpp divides the plain frequencies by, float32 [head / 2]; transformers computes Llama 3's own."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / scaled.double()).float().numpy()  # type: ignore[no-any-return]


# The tokenizer.


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer.json cuts words. Raises BadInput for a way it does not have by name."""
    model = tokenizer["model"]
    if model.get("type", "BPE") != "BPE":
        raise BadInput(
            f"a {model['type']} tokenizer cannot be written to GGUF yet",
            where="tokenizer.json",
            todo="Byte-level BPE can.",
        )
    outer = tokenizer.get("pre_tokenizer") or {"type": "none"}
    steps = tuple(_step(one) for one in outer.get("pretokenizers", [outer]))
    plain, merged = PRE_TOKENIZERS.get(steps, (None, None))
    found = merged if model.get("ignore_merges") else plain
    if found is None:
        raise BadInput(
            f"llama.cpp has no name for a tokenizer that cuts words by {' and '.join(steps)}"
            + (" with ignore_merges" if model.get("ignore_merges") else ""),
            where="tokenizer.json",
            todo="Those of GPT-2, SmolLM, Qwen2 and Llama 3 are known; another target may take it.",
        )
    return found


def _step(one: Mapping[str, Any]) -> str:
    """A pre-tokenizer as ``PRE_TOKENIZERS`` spells it: a regular expression, ``digits``, ``bytes`` and so on."""
    kind = one["type"]
    if kind == "ByteLevel" and not one.get("add_prefix_space"):
        return "bytes of words" if one.get("use_regex", True) else "bytes"
    if kind == "Digits" and one.get("individual_digits"):
        return "digits"
    if kind == "Split" and one["behavior"] == "Isolated" and not one.get("invert") and "Regex" in one["pattern"]:
        return str(one["pattern"]["Regex"])
    return str(kind)


def _tokenizer(writer: Any, gguf: Any, program: Path, config: Any) -> Facts:
    """Write tokens, merges, special tokens and the chat template; returns facts about them."""
    from tokenizers import Tokenizer

    folder = program / MODEL
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    called = pre_tokenizer(held)
    types = gguf.TokenType
    words = [f"[PAD{i}]" for i in range(config.vocab_size)]
    kinds = [types.UNUSED] * config.vocab_size
    for word, i in held["model"]["vocab"].items():
        words[i], kinds[i] = word, types.NORMAL
    for token in held.get("added_tokens", []):
        words[token["id"]] = token["content"]
        kinds[token["id"]] = types.CONTROL if token["special"] else types.USER_DEFINED
    merges = [one if isinstance(one, str) else " ".join(one) for one in held["model"]["merges"]]
    if not merges:
        raise BadInput("llama.cpp reads no tokenizer without merges", where="tokenizer.json")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(called)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    ids = {word: i for i, word in enumerate(words)}
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = {name: _content(settings.get(f"{name}_token")) for name in ("bos", "eos", "pad")}
    found = {name: ids[word] for name, word in special.items() if word in ids}
    ends = _contract.end_tokens(program)
    if ends:
        found["eos"] = ends[0]
    for name, i in found.items():
        getattr(writer, f"add_{name}_token_id")(i)
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    before, after = _added(Tokenizer.from_file(str(folder / "tokenizer.json")))
    for name, added, add in (("bos", before, writer.add_add_bos_token), ("eos", after, writer.add_add_eos_token)):
        if added not in ([], [found.get(name)]):
            raise BadInput(
                f"llama.cpp adds a {name} token or none; this tokenizer adds {added}", where="tokenizer.json"
            )
        add(bool(added))
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    if isinstance(text, str):
        writer.add_chat_template(text)
    caveats = ["llama.cpp does not normalise text (NFC)"] if held.get("normalizer") else []
    return {"pre_tokenizer": called, "tokens": len(words), "chat_template": isinstance(text, str), "caveats": caveats}


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    mask, ids = (getattr(tokenizer.encode("a"), name) for name in ("special_tokens_mask", "ids"))
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


# The runtime.


def golden_bound(scheme: str, logit_range: float) -> float:
    """Floats: 0.2 % of the range. Only the fp16 cache differs, 2**-11 of a number; 0.05 % was measured.

    Integers: 4 %. The kernels round activations to 1/127 of the largest of 32, which is about two standard deviations:
    an error of 0.5 % of one. A sum of products errs as much, relatively; nine in a row (two layers and the head) add
    up like a walk to 1.5 % of the deviation of logits, 0.2 % of their range (seven deviations), and the largest of ten
    thousand errors is five times that. Softmax over large random weights doubles it: 2.0 % was measured.
    """
    return (0.002 if scheme == "fp32" else 0.04) * logit_range


@functools.cache
def _log() -> tuple[list[str], Any]:
    """What llama.cpp complains of in this process, from now on, and who listens: it keeps a pointer to that."""
    lib = require("llama_cpp", extra)
    errors: list[str] = []

    def note(level: int, text: bytes, user: Any) -> None:
        if level == LOG_ERROR:
            errors.append(text.decode(errors="replace").strip())

    listener = lib.llama_log_callback(note)
    lib.llama_log_set(listener, None)
    return errors, listener


class Session(_contract.Cached):
    """llama.cpp through llama-cpp-python's C functions, with its default cache (fp16 keys and values)."""

    holder = "session"

    def __init__(self, artifact: Path, threads: int) -> None:
        self._lib = lib = require("llama_cpp", extra)
        errors, _ = _log()
        errors.clear()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(artifact / FILE).encode(), options)
        if not self._model:
            why = errors[0] if errors else "no message"
            raise StepFailed(f"llama.cpp does not load it: {why}", where=str(artifact / FILE))
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self.width = lib.llama_vocab_n_tokens(self._vocabulary)
        settings = lib.llama_context_default_params()
        super().__init__(min(CONTEXT, lib.llama_model_n_ctx_train(self._model)))
        settings.n_ctx = self._size
        settings.n_batch = settings.n_ubatch = min(BATCH, self._size)
        settings.n_threads = settings.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            raise StepFailed("llama.cpp gives no context for it", where=str(artifact / FILE))
        self._batch = lib.llama_batch_init(settings.n_batch, 0, 1)
        self._together = int(settings.n_batch)
        self.observed: Facts = {
            "runtime": "llama.cpp",
            "version": f"llama-cpp-python {lib.__version__}",
            "threads": threads,
            "system": lib.llama_print_system_info().decode(),
            "caveats": ["cache of keys and values in fp16", *([] if self._floats() else [BLOCKS])],
        }

    def _floats(self) -> bool:
        import ctypes

        kind = ctypes.create_string_buffer(16)
        self._lib.llama_model_meta_val_str(self._model, b"general.file_type", kind, len(kind))
        return kind.value == b"0"

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]."""
        return self._run(ids, every=False)[-1]

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of these tokens, float32 [S, V]."""
        self.reset()
        return self._run(ids, every=True)

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text by llama.cpp's own tokenizer, special tokens as the file says."""
        data = text.encode()
        ids = (self._lib.llama_token * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), True, True)
        return list(ids[:count])

    def close(self) -> None:
        """Free model and cache."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _run(self, ids: Sequence[int], *, every: bool) -> np.ndarray:
        import numpy as np

        self._room(len(ids))
        found = []
        for start in range(0, len(ids), self._together):
            some = ids[start : start + self._together]
            last = start + len(some) == len(ids)
            self._batch.n_tokens = len(some)
            for i, token in enumerate(some):
                self._batch.token[i] = token
                self._batch.pos[i] = self._fed + i
                self._batch.n_seq_id[i] = 1
                self._batch.seq_id[i][0] = 0
                self._batch.logits[i] = every or (last and i == len(some) - 1)
            status = self._lib.llama_decode(self._context, self._batch)
            if status:
                raise StepFailed(f"llama_decode says {status}")
            self._fed += len(some)
            for i in range(len(some)):
                if self._batch.logits[i]:
                    logits = self._lib.llama_get_logits_ith(self._context, i)
                    found.append(np.ctypeslib.as_array(logits, (self.width,)).copy())
        all_of_them: np.ndarray = np.stack(found)
        return all_of_them


def open_session(artifact: Path, *, threads: int = 1) -> Session:
    """Open ``artifact/model.gguf``."""
    return Session(artifact, threads)
