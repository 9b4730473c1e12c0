"""What one step leaves for the next: a directory with a manifest, written last.

A directory is an artefact if and only if ``manifest.json`` exists in it: the manifest is the last file
written into ``<name>.partial/``, which is then renamed. So a crash, a kill -9 or a full disk leaves
either the whole artefact or a partial directory that the same step resumes. See docs/formats.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.errors import BadInput

MANIFEST = "manifest.json"
SCHEMA = "edgekd/manifest/1"
SCRATCH = "scratch"  # a folder of this name inside a partial directory is working state, dropped at the end

Facts = dict[str, Any]
Progress = Callable[[int, int, str], None]  # done, total, unit (e.g. "samples")
Evaluated = Callable[[int, int, Mapping[str, float]], None]  # step, steps, metrics on the validation split


def no_progress(done: int, total: int, unit: str) -> None:
    """The Progress that shows nothing."""


def not_told(step: int, steps: int, metrics: Mapping[str, float]) -> None:
    """The Evaluated that nobody listens to."""


@dataclass(frozen=True)
class Artifact:
    """A finished directory. ``digest`` covers every file's content and nothing else (no time, no path)."""

    path: Path
    stage: str
    label: str
    key: str
    digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """Path of a file of this artefact; raises BadInput when it is not listed in the manifest."""
        if name not in self.files:
            raise BadInput(f"'{name}' is not part of it", where=str(self.path))
        return self.path / name


@dataclass(frozen=True)
class Inputs:
    """What a stage function is given beside its recipe: parents by name, and what varies per step.

    ``parents`` maps a parent's name ("data", "teach", "distill", "quantize", "export", ...) to its artefact;
    ``variant`` holds for instance ``{"target": "onnx", "scheme": "w8a8"}``.
    """

    parents: Mapping[str, Artifact] = field(default_factory=dict)
    variant: Mapping[str, str] = field(default_factory=dict)
    earlier: Sequence[Artifact] = ()  # finished steps of the same stage under other keys, newest first
    progress: Progress = no_progress
    evaluated: Evaluated = not_told

    def __getitem__(self, name: str) -> Artifact:
        return self.parents[name]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON-able value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_tree(path: Path) -> str:
    """Digest of a file, or of a folder's relative names and contents (hidden files left out)."""
    if path.is_file():
        return sha256_file(path)
    return sha256_json({str(f.relative_to(path)): sha256_file(f) for f in _tree(path)})


def _tree(folder: Path) -> list[Path]:
    return sorted(
        f
        for f in folder.rglob("*")
        if f.is_file() and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``write_atomic`` of indented JSON; NaN and infinity are refused (they are not JSON)."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises BadInput naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("no such file", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"not valid JSON ({error})", where=str(path)) from None


def partial_of(path: Path) -> Path:
    """The directory in which ``path`` is being made."""
    return path.with_name(path.name + ".partial")


def seal(
    path: Path,
    *,
    stage: str,
    label: str,
    key: str,
    facts: Facts,
    parents: Mapping[str, str],
    tools: Mapping[str, str],
) -> Artifact:
    """Turn ``<path>.partial/`` into the artefact ``path``: drop scratch, write the manifest, rename."""
    partial = partial_of(path)
    shutil.rmtree(partial / SCRATCH, ignore_errors=True)
    files = {
        str(f.relative_to(partial)): {"sha256": sha256_file(f), "size_bytes": f.stat().st_size}
        for f in _tree(partial)
        if f.name != MANIFEST or f.parent != partial
    }
    digest = sha256_json({name: entry["sha256"] for name, entry in files.items()})
    write_json(
        partial / MANIFEST,
        {
            "schema": SCHEMA,
            "stage": stage,
            "label": label,
            "key": key,
            "digest": digest,
            "parents": dict(parents),
            "tools": dict(tools),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "facts": facts,
            "files": files,
        },
    )
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    return load(path)


def load(path: Path) -> Artifact:
    """Open a finished directory; raises BadInput when there is no manifest or it is of another schema."""
    manifest = read_json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA:
        raise BadInput(
            f"manifest schema {manifest.get('schema')!r} is not {SCHEMA!r}",
            where=str(path),
            todo="Delete the directory and run the same command again.",
        )
    return Artifact(
        path=path,
        stage=manifest["stage"],
        label=manifest["label"],
        key=manifest["key"],
        digest=manifest["digest"],
        facts=manifest["facts"],
        files=manifest["files"],
    )


def check(artifact: Artifact) -> list[str]:
    """Names of files that are missing or differ from their digest (empty when all is well)."""
    return [
        name
        for name, entry in artifact.files.items()
        if not (artifact.path / name).is_file() or sha256_file(artifact.path / name) != entry["sha256"]
    ]


def publish(artifact: Artifact, folder: Path) -> None:
    """Make ``folder`` hold exactly the artefact's files, by hard link where the disk allows, else by copy."""
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("digest") == artifact.digest:
        return
    staging = partial_of(folder)
    shutil.rmtree(staging, ignore_errors=True)
    for name in [*artifact.files, MANIFEST]:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(artifact.path / name, staging / name)
        except OSError:
            shutil.copy2(artifact.path / name, staging / name)
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)
