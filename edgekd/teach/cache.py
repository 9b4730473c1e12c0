"""The store of teacher outputs: safetensors shards, read by sample id, in any order.

A sample's id is a hash of everything its outputs depend on (text, tokenizer, teacher, length, task), so a row
can never be paired with another row's outputs, whatever the order, the split or the seed. A shard holds its ids
and every kind of knowledge under its name: ``logits`` in float32, records of ``sparse.py`` as bytes, all else in half
precision. What every sample has in one shape is one tensor [N, ...]; what grows with the tokens is ragged: all
samples' rows one after another [sum S, D], beside it how many belong to each. Shards are written atomically; what a
kill interrupts is at most one. No pickle anywhere.

Refused: a broken shard, one of another teacher, a sample that two places claim, values that are not finite, and
(before the teacher runs) a cache that would be larger than the recipe allows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from edgekd.artifact import Artifact, read_json, write_atomic
from edgekd.errors import BadInput
from edgekd.teach import sparse

SCHEMA = "edgekd/teacher-cache/1"
FOLDER = "cache"
SAMPLES = "samples.json"
IDS = "ids"
LENGTHS = "/lengths"  # "hidden:6:tokens/lengths": rows of each sample in the flat "hidden:6:tokens"
ID_BYTES, LENGTH_BYTES = 16, 8


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[torch.Tensor]):
    """Tensors of different length, read as views: flat tensors [sum S, ...], and per sample (which flat, start, stop).

    The flats are memory maps of the shards, so a cache larger than memory can be trained from, and 200,000 samples
    cost 24 bytes each here instead of the 600 or so of a tensor object.
    """

    flats: Sequence[torch.Tensor]
    places_N3: np.ndarray

    def __len__(self) -> int:
        return len(self.places_N3)

    def __getitem__(self, row: int) -> torch.Tensor:  # type: ignore[override]
        flat, start, stop = self.places_N3[row].tolist()
        return self.flats[flat][start:stop]


Knowledge = torch.Tensor | Sequence[torch.Tensor]  # [N, ...], or one [S_i, ...] per sample


def identity(**parts: Any) -> str:
    """One hash of what all samples of a cache share (JSON-able): teacher, tokenizer, maximal length, task."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sample_id(identity: str, text: str) -> str:
    """Id of one sample: 32 hexadecimal digits."""
    return hashlib.sha256(f"{identity}\n{text}".encode()).hexdigest()[:32]


def has_shard(folder: Path, number: int) -> bool:
    """Whether this shard is written (whole: shards are written atomically)."""
    return _shard(folder, number).is_file()


def write_shard(
    folder: Path, number: int, identity: str, ids: Sequence[str], knowledge: Mapping[str, Knowledge]
) -> None:
    """Write one shard: per name one tensor [len(ids), ...], or one tensor [S_i, ...] per sample (ragged).

    All but ``logits`` is stored in half precision. Raises BadInput for values that it cannot hold (above 65504 or not
    finite), ValueError for a wrong number of samples or an id that occurs twice.
    """
    if len(set(ids)) != len(ids):
        raise ValueError("a sample's id occurs twice in one shard")
    tensors = {IDS: torch.tensor([list(bytes.fromhex(one)) for one in ids], dtype=torch.uint8)}
    for name, value in knowledge.items():
        if len(value) != len(ids):
            raise ValueError(f"{name}: {len(value)} rows for {len(ids)} samples")
        if not isinstance(value, torch.Tensor):
            tensors[name + LENGTHS] = torch.tensor([len(one) for one in value], dtype=torch.int64)
            value = torch.cat(list(value))
        tensors[name] = value.to(_dtype(name)).contiguous()
        if not _finite(tensors[name]):
            raise BadInput(
                f"the teacher's {name} has values that are not finite in {tensors[name].dtype}",
                where="teach",
                todo="Check the teacher, or use knowledge of another layer.",
            )
    # One metadata entry: the library writes several in no fixed order, and equal shards must be equal bytes.
    metadata = {"edgekd": json.dumps({"schema": SCHEMA, "identity": identity})}
    write_atomic(_shard(folder, number), save(tensors, metadata))


class Cache:
    """An opened folder of shards. Raises BadInput for a shard that is broken or of another teacher."""

    def __init__(self, folder: Path, identity: str | None = None) -> None:
        self.folder = folder
        self._place: dict[str, tuple[Path, int]] = {}
        self._kinds: dict[Path, frozenset[str]] = {}
        self._values: dict[tuple[Path, str], tuple[torch.Tensor, torch.Tensor | None]] = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    metadata = json.loads((shard.metadata() or {}).get("edgekd", "{}"))
                    ids = shard.get_tensor(IDS)
                    kinds = frozenset(shard.keys())
            except (SafetensorError, OSError, ValueError) as error:
                raise _broken(path, str(error)) from None
            if metadata.get("schema") != SCHEMA:
                raise _broken(path, f"schema {metadata.get('schema')!r} is not {SCHEMA!r}")
            if identity is not None and metadata.get("identity") != identity:
                raise _broken(path, "made by another teacher, tokenizer or length")
            self._kinds[path] = frozenset(name for name in kinds if name != IDS and not name.endswith(LENGTHS))
            for row, one in enumerate(ids.tolist()):
                if self._place.setdefault(bytes(one).hex(), (path, row)) != (path, row):
                    raise _broken(path, "it holds a sample twice")

    def __contains__(self, sample: str) -> bool:
        return sample in self._place

    def __len__(self) -> int:
        return len(self._place)

    def holds(self, names: Iterable[str], ids: Iterable[str]) -> bool:
        """Whether every one of these samples has all these kinds of knowledge."""
        wanted = frozenset(names)
        return all(one in self._place and wanted <= self._kinds[self._place[one][0]] for one in ids)

    def read(self, name: str, ids: Sequence[str]) -> Knowledge:
        """One kind of knowledge for these samples, in this order: a new tensor [len(ids), ...], or a ``Ragged``.

        Both are what a training loop gathers its batches from; a ``Ragged`` is a view of the files.
        """
        missing = [one for one in ids if one not in self._place]
        if missing:
            raise _broken(self.folder, f"{len(missing)} of {len(ids)} samples are not in it")
        rows: dict[Path, list[tuple[int, int]]] = {}
        for position, one in enumerate(ids):
            path, row = self._place[one]
            rows.setdefault(path, []).append((position, row))
        values = {path: self._open(path, name) for path in rows}
        shapes = {(tuple(flat.shape[1:]), ends is None) for flat, ends in values.values()}
        if not values:
            return torch.empty(0)
        if len(shapes) > 1:
            raise _broken(self.folder, f"{name} has another shape in every shard: {sorted(shapes)}")
        trailing, stacked = shapes.pop()
        places_N3 = torch.empty(len(ids), 3, dtype=torch.int64)
        dtype = next(iter(values.values()))[0].dtype
        out = torch.empty((len(ids), *trailing) if stacked else 0, dtype=dtype)
        for number, (path, pairs) in enumerate(rows.items()):
            flat, ends = values[path]
            at, source = torch.tensor(pairs).unbind(1)
            if ends is None:
                out[at] = flat[source]
            else:
                places_N3[at] = torch.stack((torch.full_like(at, number), ends[source], ends[source + 1]), 1)
        return out if stacked else Ragged([flat for flat, _ in values.values()], places_N3.numpy())

    def _open(self, path: Path, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A shard's tensor (a memory map, kept open, checked once); where it is ragged also its bounds [N + 1]."""
        if (path, name) in self._values:
            return self._values[path, name]
        bounds = None
        try:
            with safe_open(path, framework="pt") as shard:
                values, count = shard.get_tensor(name), shard.get_slice(IDS).get_shape()[0]
                if name + LENGTHS in shard.keys():  # noqa: SIM118 (it is no dict)
                    lengths = shard.get_tensor(name + LENGTHS)
                    bounds = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        except (SafetensorError, OSError) as error:
            raise _broken(path, str(error)) from None
        rows = len(values) if bounds is None else len(bounds) - 1
        if rows != count:
            raise _broken(path, f"{name} has {rows} rows for {count} samples")
        if bounds is not None and (int(bounds[-1]) != len(values) or bool((bounds.diff() < 0).any())):
            raise _broken(path, f"the lengths of {name} do not add up")
        if not _finite(values):
            raise _broken(path, f"{name} has values that are not finite")
        self._values[path, name] = values, bounds
        return values, bounds


def read_logits(teach: Artifact, split: str) -> torch.Tensor | list[torch.Tensor]:
    """The teacher's outputs in the row order of ``<split>.jsonl``: [N, C] float32, or one [W, C] per row."""
    samples = read_json(teach.file(SAMPLES))
    found = Cache(teach.path / FOLDER, samples["identity"]).read("logits", samples["splits"][split])
    return found.float() if isinstance(found, torch.Tensor) else [one.float() for one in found]


def estimate(
    names: Iterable[str],
    samples: int,
    lengths: Sequence[int],
    config: Any,
    *,
    outputs: int | None = None,
    per_unit: bool = False,
) -> int:
    """Bytes that the cache will take, from the lengths (in tokens) of all its samples or of some of them.

    ``config`` is the teacher's; a length of 0 is an image, whose patches it tells. ``outputs`` is the width of the
    logits (default: the number of labels); ``per_unit`` logits are counted per token, which is at most too many.
    """
    images = not any(lengths)
    tokens = [1 + (config.image_size // config.patch_size) ** 2] if images and _sized(config) else lengths
    mean, mean_square = sum(tokens) / len(tokens), sum(n * n for n in tokens) / len(tokens)
    each = float(ID_BYTES)
    for name in names:
        item = _dtype(name).itemsize
        if sparse.is_kind(name):
            each += mean * sparse.kind(name, config.vocab_size).size + LENGTH_BYTES
        elif name == "logits":
            each += (outputs or config.num_labels) * item * (mean if per_unit else 1) + per_unit * LENGTH_BYTES
        elif name.endswith((":cls", ":mean")):
            each += config.hidden_size * item
        elif name.startswith("attention:"):
            each += mean_square * config.num_attention_heads * item + LENGTH_BYTES
        else:
            each += mean * config.hidden_size * item + LENGTH_BYTES
    return round(each * samples)


def refuse(size_bytes: int, max_gb: float) -> None:
    """Raise BadInput, with advice, when a cache of the estimated size exceeds ``max_gb`` times 10^9 bytes."""
    if size_bytes > max_gb * 1e9:
        raise BadInput(
            f"the teacher's cache would take {size_bytes / 1e9:.3g} GB, teach.max_cache_gb is {max_gb:g}",
            where="recipe",
            todo="In distill.losses use pool: cls or mean instead of none and fewer layers (tokens and attention maps "
            "are what is large), or set teach.online: true, or raise the limit.",
        )


def _sized(config: Any) -> bool:
    return isinstance(getattr(config, "patch_size", None), int) and isinstance(config.image_size, int)


def _finite(values: torch.Tensor) -> bool:
    """Whether all values are finite: NaN spreads to the extremes, and those are found 15 times faster."""
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _dtype(name: str) -> torch.dtype:
    if sparse.is_kind(name):
        return torch.uint8
    return torch.float32 if name == "logits" else torch.float16


def _broken(path: Path, what: str) -> BadInput:
    return BadInput(f"the teacher's cache cannot be used: {what}", where=str(path), todo="Delete that step's folder.")
