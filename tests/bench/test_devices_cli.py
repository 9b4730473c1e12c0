"""`edgekd devices`: what there is, what a device says of itself, and a profile made from that."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from edgekd.bench import devices
from edgekd.errors import BadInput


def test_list_and_probe(edgekd) -> None:  # type: ignore[no-untyped-def]
    listed = json.loads(edgekd("devices", "list", "--json").out)["devices"]
    assert {"local", "chromium", "pixel8", "galaxy-s24", "iphone15", "raspberry-pi-5", "jetson-orin-nano"} <= {
        one["name"] for one in listed
    }
    found = json.loads(edgekd("devices", "probe", "local", "--json").out)["found"]
    assert found["machine"] == platform.machine() and found["cores"] >= 1
    unknown = edgekd("devices", "probe", "lokal")
    assert unknown.code == 2 and "Did you mean 'local'?" in unknown.err


def test_a_profile_is_made_from_what_is_found_and_can_be_used(edgekd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "mine.yaml"
    said = edgekd("devices", "add", "mine", "--transport", "local", "--out", str(out))
    assert said.code == 0, said.err
    made = devices.load(str(out))
    assert (made.name, made.transport, made.runner) == ("mine", "local", "native")
    assert made.ram_mb and made.os and made.abi == {"x86_64": "x86_64", "aarch64": "aarch64"}.get(platform.machine())
    again = edgekd("devices", "add", "mine", "--transport", "local", "--out", str(out))
    assert again.code == 2 and "exists already" in again.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--transport", "locl"), "unknown"),
        (("--transport", "ssh", "--option", "port"), "is no option"),
        (("--transport", "ssh", "--option", "host=x", "--option", "password=x"), "options.password"),
        (("--transport", "file"), "options.folder"),
    ],
)
def test_what_cannot_be_is_told(edgekd, arguments: tuple[str, ...], told: str) -> None:  # type: ignore[no-untyped-def]
    said = edgekd("devices", "add", "mine", *arguments)
    assert said.code == 2 and told in said.err.replace("\n", " ")
    with pytest.raises(BadInput, match="device: name"):
        devices.new("a b; c", "local", "native", [])
