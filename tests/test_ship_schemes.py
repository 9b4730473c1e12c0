"""Every scheme that a target carries, through the whole of `edgekd ship`: every artefact passes every check."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd import registry
from edgekd.quantize.scheme import SCHEMES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
TARGETS = registry.names("targets")
MIXED = "quantize.overrides={w8a8: {contracting: %s}}"


@pytest.mark.parametrize("target", TARGETS)
def test_every_accepted_scheme_ships(target: str, tiny, edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    accepts = registry.load("targets", target).accepts
    schemes = [name for name in SCHEMES if name in accepts]
    other = "w8a8-dynamic" if "w8a8-dynamic" in accepts else "w8a8-float-output"
    sets = ["--set", f"export.targets=[{target}]", "--set", f"quantize.schemes={schemes}", "--set", MIXED % other]
    said = edgekd(
        "ship", tiny.folder / "recipe.yaml", "--run-dir", tmp_path / "run", *sets, "--set", "distill.baseline=false",
        "--no-bench", "--json", timeout=2900,
    )  # fmt: skip
    told = {entry["name"]: entry["reasons"] for entry in said.json["artifacts"]}
    assert said.code == 0, (told, said.err[-2000:])
    assert set(told) == {f"{target}-{scheme}" for scheme in schemes}
    for entry in said.json["artifacts"]:
        assert entry["verdict"] == "pass" and entry["faithful"]["numbers"]["missing"] == []
        assert entry["faithful"]["kernels"]["accelerated"] is not False
