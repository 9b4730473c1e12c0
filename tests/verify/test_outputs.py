"""Outputs of rows as a file: what goes in comes out, whatever its shape, and a file that is broken is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgekd.errors import BadInput
from edgekd.outputs import read_outputs, save_outputs

CHANCE = np.random.default_rng(0)


@pytest.mark.parametrize("shapes", [[(3,)] * 4, [(2, 5), (0, 5), (7, 5)], [(1, 2)], [(4, 2)] * 3])
def test_outputs_survive_their_file(tmp_path: Path, shapes: list[tuple[int, ...]]) -> None:
    made = [CHANCE.normal(size=shape).astype(np.float32) for shape in shapes]
    save_outputs(tmp_path / "a.safetensors", made)
    save_outputs(tmp_path / "b.safetensors", [torch.from_numpy(one) for one in made])
    for name in ("a", "b"):
        found = read_outputs(tmp_path / f"{name}.safetensors")
        assert len(found) == len(made)
        for one, other in zip(found, made, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_array_equal(one, other)


def test_one_answer_a_row_is_a_plain_table(tmp_path: Path) -> None:
    """Other tools read ``logits`` [N, C]; a whole array is taken as it is."""
    logits_NC = CHANCE.normal(size=(6, 3)).astype(np.float32)
    save_outputs(tmp_path / "x.safetensors", logits_NC, rows=[0, 2, 4, 6, 8, 10])
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == {"logits", "rows"} and found["rows"].tolist() == [0, 2, 4, 6, 8, 10]
    np.testing.assert_array_equal(found["logits"], logits_NC)


@pytest.mark.parametrize("lengths", [[2, 3], [7, -1], [6, 1]])
def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path, lengths: list[int]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"logits": np.zeros((6, 2), np.float32), "lengths": np.array(lengths)}, path)
    with pytest.raises(BadInput, match=r"x\.safetensors: .*do not add up"):
        read_outputs(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 20)
    save_file({"other": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    for name in ("noise", "other", "absent"):
        with pytest.raises(BadInput, match=name):
            read_outputs(tmp_path / f"{name}.safetensors")
