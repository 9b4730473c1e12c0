"""What a generator is: one module that turns a generative Program into an artefact, and writes text with it.

The Program is a transformers folder (``model/``) whose float32 weights are the shipped ones, and
``numbers.safetensors`` with their integers and scales (``quantize/tokens.py``). A generator legalises (same numbers,
other spelling) and never chooses a number. Vendor packages are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.artifact import Facts
from edgekd.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

MODEL, NUMBERS = "model", "numbers.safetensors"
BLOCK = 32  # inputs that share an int4 scale

Numbers = dict[str, "tuple[np.ndarray, np.ndarray]"]  # matrix -> int8 [O, I], float32 [O, G]


class Generator(Protocol):
    """An opened artefact. ``observed`` says what really runs: runtime, version, threads, caveats."""

    observed: Facts

    def reset(self) -> None:
        """Forget all tokens."""
        ...

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]; they follow those fed before."""
        ...

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of these tokens, float32 [S, V], from an empty cache."""
        ...

    def close(self) -> None:
        """Free the runtime's memory."""
        ...


class Writer(Protocol):
    """The module contract of ``edgekd/generators/<name>.py``."""

    suffix: str  # ".gguf", or "" for a folder of files
    extra: str  # pip install 'edgekd[<extra>]'
    tasks: frozenset[str]  # whose students it writes
    distributions: tuple[str, ...]  # PyPI names of exporter and runtime; their versions enter key and manifest
    accepts: frozenset[str]  # schemes that it carries faithfully
    refuses: Mapping[str, str]  # why not, for the others: half a sentence for the user
    runs: bool  # whether this host has a runtime for it
    block: int  # its quantized matrices have inputs in blocks of so many; 1: any number

    def check(self, config: Any) -> None:
        """Raise BadInput for a transformers configuration that it cannot write. Reads nothing else."""
        ...

    def export(self, program: Path, out: Path, *, max_length: int) -> Facts:
        """Write the artefact to ``out``, with tokenizer and chat template as its ecosystem's clients want them.

        The facts hold ``file`` (what a client opens, in ``out``), ``architecture``, ``context`` (tokens that the cache
        can hold) and ``max_length``; the rest is the generator's own.
        """
        ...

    def golden_bound(self, scheme: str, logit_range: float) -> float:
        """Largest |difference| of a logit from the Program on the golden texts; argued in the docstring.

        Two tokens whose logits are nearer than twice that are a tie: either may be written.
        """
        ...

    def open_session(self, artifact: Path, *, threads: int = 1) -> Generator:
        """Open the artefact in this folder."""
        ...

    # optional: kernels(artifact) -> Facts, the layers that the runtime runs in integers and in floats; as a target's

    def numbers(self, artifact: Path) -> Numbers:
        """Integers and scales as the file holds them, by the Program's names; a tied head is not repeated."""
        ...


class Cached:
    """What sessions have in common whose cache of keys and values holds so many tokens."""

    holder = "file"  # what limits the cache, for the user

    def __init__(self, size: int) -> None:
        self._size, self._fed = size, 0

    def reset(self) -> None:
        """Forget all tokens."""
        self._fed = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after the last of these tokens, float32 [V]."""
        raise NotImplementedError

    def score(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each of these tokens, float32 [S, V]; one by one, where a file gives those of the last."""
        import numpy as np

        self.reset()
        logits: np.ndarray = np.stack([self.feed([one]) for one in ids])
        return logits

    def _room(self, count: int) -> None:
        """Raise BadInput where so many tokens more do not fit."""
        if self._fed + count > self._size:
            raise BadInput(f"{self._fed + count} tokens; the {self.holder}'s cache holds {self._size}")


def read_numbers(program: Path) -> Numbers:
    """The integers and scales of a Program."""
    from safetensors.numpy import load_file

    held = load_file(program / NUMBERS)
    names = [name.removesuffix(".weight") for name in held if name.endswith(".weight")]
    return {name: (held[f"{name}.weight"], held[f"{name}.scale"]) for name in names}


def read_weights(program: Path) -> dict[str, np.ndarray]:
    """All weights of a Program, float32 by parameter name; a tied head is not among them."""
    from safetensors.numpy import load_file

    return load_file(program / MODEL / "model.safetensors")  # type: ignore[no-any-return]


def read_config(program: Path) -> Any:
    """The transformers configuration of a Program."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(program / MODEL)


def check_type(config: Any, known: Sequence[str], runtime: str) -> None:
    """Raise BadInput where ``config`` is of no known ``model_type``, or has parts that only edgekd knows."""
    if config.model_type not in known:
        raise BadInput(
            f"{runtime} cannot be written for a model of type '{config.model_type}' yet",
            where="export.targets",
            todo=f"Types that can: {', '.join(known)}.",
        )
    own = [name for name in vars(config) if name.startswith("edgekd_")]
    if own:
        raise BadInput(
            f"{runtime} has no form for a student with {own[0].removeprefix('edgekd_')} of its own",
            where="distill.student",
            todo="Leave embedding_size and heads out.",
        )
    if getattr(config, "use_sliding_window", False):
        raise BadInput(
            f"{runtime} is not written for sliding windows yet",
            where="config.json",
            todo="Set use_sliding_window false.",
        )


def check_widths(config: Any, block: int, target: str) -> None:
    """Raise BadInput for a configuration whose matrices have inputs that do not fill the blocks of a target."""
    heads = config.num_attention_heads
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        f"heads ({heads} of {head_dim(config)})": heads * head_dim(config),
    }
    for name, size in sizes.items():
        if size % block:
            raise BadInput(
                f"{target} holds quantized matrices in blocks of {block} inputs; {name} makes {size}",
                where="distill.student",
                todo=f"Make it a multiple of {block}, or drop the target.",
            )


def head_dim(config: Any) -> int:
    """Width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def end_tokens(program: Path) -> list[int]:
    """Ids that end a text, as generation_config.json or config.json names them; the first is the usual one."""
    from edgekd.artifact import read_json

    for name in ("generation_config.json", "config.json"):
        file = program / MODEL / name
        found = read_json(file).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return list(found) if isinstance(found, list) else [found]
    return []


def check_rotations(config: Any, known: Sequence[str], runtime: str) -> None:
    """Raise BadInput where positions turn channels in a way that is not in ``known``."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in known:
        raise BadInput(
            f"{runtime} is not written for rope type '{kind}' of {config.model_type} yet",
            where="config.json",
            todo=f"Known: {', '.join(known)}.",
        )
