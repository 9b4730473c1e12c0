"""Artefacts: a manifest written last, digests of content alone, atomic writes, hard-linked publishing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edgekd import artifact
from edgekd.errors import BadInput


def make(path: Path, content: bytes = b"x", **facts: object) -> artifact.Artifact:
    partial = artifact.partial_of(path)
    (partial / artifact.SCRATCH).mkdir(parents=True)
    (partial / artifact.SCRATCH / "state").write_bytes(b"working state")
    (partial / "sub").mkdir()
    (partial / "sub" / "file").write_bytes(content)
    return artifact.seal(path, stage="s", label="l", key="k", facts=dict(facts), parents={"p": "d"}, tools={})


def test_sealing_drops_scratch_and_records_every_file(tmp_path: Path) -> None:
    made = make(tmp_path / "a", b"hello", n=1)
    assert made.files == {"sub/file": {"sha256": hashlib.sha256(b"hello").hexdigest(), "size_bytes": 5}}
    assert not (tmp_path / "a.partial").exists()
    assert artifact.load(tmp_path / "a") == made
    assert artifact.check(made) == []


def test_digest_depends_on_content_and_not_on_place_or_facts(tmp_path: Path) -> None:
    one, two, three = make(tmp_path / "a", n=1), make(tmp_path / "b", n=2), make(tmp_path / "c", b"y")
    assert one.digest == two.digest != three.digest


def test_check_finds_a_changed_and_a_missing_file(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    (made.path / "sub" / "file").write_bytes(b"changed")
    assert artifact.check(made) == ["sub/file"]
    (made.path / "sub" / "file").unlink()
    assert artifact.check(made) == ["sub/file"]


def test_a_directory_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(BadInput, match="no such file"):
        artifact.load(tmp_path / "a")


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    artifact.write_json(path, {"old": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write_json(path, {"new": 2})
    assert artifact.read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        artifact.write_json(tmp_path / "a.json", float("nan"))


def test_publish_replaces_the_whole_folder(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    artifact.publish(make(tmp_path / "a", b"1"), shown)
    (shown / "stray").write_text("left by somebody")
    artifact.publish(make(tmp_path / "b", b"2"), shown)
    assert (shown / "sub" / "file").read_bytes() == b"2"
    assert not (shown / "stray").exists()
