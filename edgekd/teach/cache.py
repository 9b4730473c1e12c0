"""The store of teacher outputs: safetensors shards, read by sample id, in any order.

A sample's id is a hash of everything its outputs depend on (text, tokenizer, teacher, length, task), so a row
can never be paired with another row's outputs, whatever the order, the split or the seed. A shard holds one
tensor per kind of knowledge (``logits`` now; hidden states, relations and text have room beside it) and its
ids. Shards are written atomically; what a kill interrupts is at most one shard. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from edgekd.artifact import Artifact, read_json, write_atomic
from edgekd.errors import BadInput

SCHEMA = "edgekd/teacher-cache/1"
FOLDER = "cache"
SAMPLES = "samples.json"


def identity(**parts: str | int | None) -> str:
    """One hash of what all samples of a cache share: teacher, tokenizer, maximal length, task."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sample_id(identity: str, text: str) -> str:
    """Id of one sample: 32 hexadecimal digits."""
    return hashlib.sha256(f"{identity}\n{text}".encode()).hexdigest()[:32]


def write_shard(
    folder: Path, number: int, identity: str, ids: Sequence[str], knowledge: dict[str, torch.Tensor]
) -> None:
    """Write one shard; every tensor's first dimension is the sample."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in knowledge.items():
        if len(tensor) != len(ids):
            raise ValueError(f"{name}: {len(tensor)} rows for {len(ids)} samples")
    id_bytes = torch.tensor([list(bytes.fromhex(one)) for one in ids], dtype=torch.uint8)
    # One metadata entry: the library writes several in no fixed order, and equal shards must be equal bytes.
    metadata = {"edgekd": json.dumps({"schema": SCHEMA, "identity": identity})}
    tensors = {"ids": id_bytes, **{name: tensor.contiguous() for name, tensor in knowledge.items()}}
    write_atomic(folder / f"shard-{number:05d}.safetensors", save(tensors, metadata))


class Cache:
    """An opened folder of shards. Raises BadInput for a shard that is broken or of another teacher."""

    def __init__(self, folder: Path, identity: str | None = None) -> None:
        self.folder = folder
        self._place: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    metadata = json.loads((shard.metadata() or {}).get("edgekd", "{}"))
                    ids = shard.get_tensor("ids")
            except (SafetensorError, OSError, ValueError) as error:
                raise _broken(path, str(error)) from None
            if metadata.get("schema") != SCHEMA:
                raise _broken(path, f"schema {metadata.get('schema')!r} is not {SCHEMA!r}")
            if identity is not None and metadata.get("identity") != identity:
                raise _broken(path, "made by another teacher, tokenizer or length")
            for row, one in enumerate(ids.tolist()):
                if self._place.setdefault(bytes(one).hex(), (path, row)) != (path, row):
                    raise _broken(path, "it holds a sample twice")

    def __contains__(self, sample: str) -> bool:
        return sample in self._place

    def __len__(self) -> int:
        return len(self._place)

    def read(self, name: str, ids: Sequence[str]) -> torch.Tensor:
        """One kind of knowledge for these samples, in this order: [len(ids), ...]."""
        missing = [one for one in ids if one not in self._place]
        if missing:
            raise _broken(self.folder, f"{len(missing)} of {len(ids)} samples are not in it")
        rows: dict[Path, list[tuple[int, int]]] = {}
        for position, one in enumerate(ids):
            path, row = self._place[one]
            rows.setdefault(path, []).append((position, row))
        out: torch.Tensor | None = None
        for path, pairs in rows.items():
            try:
                with safe_open(path, framework="pt") as shard:
                    values, count = shard.get_tensor(name), shard.get_slice("ids").get_shape()[0]
            except (SafetensorError, OSError) as error:
                raise _broken(path, str(error)) from None
            if len(values) != count:
                raise _broken(path, f"{name} has {len(values)} rows for {count} samples")
            if not torch.isfinite(values).all():
                raise _broken(path, f"{name} has values that are not finite")
            if out is None:
                out = values.new_empty((len(ids), *values.shape[1:]))
            if values.shape[1:] != out.shape[1:]:
                raise _broken(path, f"{name} has shape {tuple(values.shape[1:])}, expected {tuple(out.shape[1:])}")
            positions, sources = zip(*pairs, strict=True)
            out[list(positions)] = values[list(sources)]
        return out if out is not None else torch.empty(0)


def read_logits(teach: Artifact, split: str) -> torch.Tensor:
    """The teacher's logits [N, C] float32 in the row order of ``<split>.jsonl``."""
    samples = read_json(teach.file(SAMPLES))
    return Cache(teach.path / FOLDER, samples["identity"]).read("logits", samples["splits"][split]).float()


def _broken(path: Path, what: str) -> BadInput:
    return BadInput(f"the teacher's cache cannot be used: {what}", where=str(path), todo="Delete that step's folder.")
