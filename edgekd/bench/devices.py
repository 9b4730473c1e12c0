"""Device profiles: one YAML per known device. Data, not code; nothing here talks to a device.

A device is named in the recipe (``bench.devices``) by the name of a file in ``devices/``, or by the path of a YAML
file of one's own. A profile is a contract: bench measures by it, the gate holds artefacts to its limits, and what a
device cannot do (its runtimes) is not tried on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import Field

from edgekd import registry
from edgekd.errors import BadInput, closest
from edgekd.recipe import Section

SUFFIXES = (".yaml", ".yml")
ABIS = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}  # uname -m


class Cluster(Section):
    """Processors of one kind; ``cpus`` are their numbers, as taskset counts them."""

    name: str = Field(description="little, middle, big, or what the vendor calls it.")
    core: str = Field("", description="Microarchitecture.")
    cpus: list[int] = Field(description="Numbers of the processors.")
    max_mhz: int | None = Field(None, ge=1, description="Highest frequency.")


class Limits(Section):
    """Budgets of this device; the gate judges every artefact that was measured on it by them."""

    p50_ms: float | None = Field(None, gt=0, description="Median latency at the longest input, milliseconds.")
    peak_mb: float | None = Field(None, gt=0, description="Peak memory above the idle process, 10^6 bytes.")
    load_ms: float | None = Field(None, gt=0, description="Median load time in a fresh process, milliseconds.")
    size_mb: float | None = Field(None, gt=0, description="File size, 10^6 bytes.")
    temperature_c: float | None = Field(None, gt=0, description="Warmer than this, and a measurement is flagged.")


class Device(Section):
    """What a device is, how it is reached, and what it must hold."""

    schema_version: Literal[1] = Field(1, description="Version of this format.")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Appears in every measurement.")
    description: str = Field("", description="For people.")
    soc: str | None = Field(None, description="System on chip, or processor.")
    ram_mb: int | None = Field(None, ge=1, description="Memory, 10^6 bytes.")
    os: str | None = Field(None, description="Operating system and its version.")
    abi: Literal["x86_64", "aarch64", "android-arm64", "ios-arm64", "wasm"] | None = Field(
        None, description="What its binaries are built for; null: this machine's own."
    )
    transport: str = Field(description="A module of edgekd/bench/transports/ or a plug-in.")
    options: dict[str, Any] = Field(default_factory=dict, description="The transport's own: see its Options.")
    runner: str = Field(description="`native`, `browser`, or the runner's file in runtimes/.")
    python: str | None = Field(None, description="Its Python interpreter; default: the one that runs edgekd.")
    runtimes: list[str] | None = Field(None, description="Runtimes that it can be given; null: whatever there is.")
    delegates: list[str] = Field(default_factory=list, description="Accelerators that its runtimes may use.")
    clusters: list[Cluster] = Field(default_factory=list, description="Its processors, by kind.")
    cpu_affinity: list[int] | None = Field(None, description="Processors to stay on; default: the system chooses.")
    emulated: bool = Field(False, description="Its numbers count, its times do not.")
    limits: Limits = Field(default_factory=Limits, description="Budgets for the gate.")
    sources: list[str] = Field(default_factory=list, description="Where the facts of this profile come from.")


def known() -> list[str]:
    """Names of the profiles that come with edgekd."""
    return sorted(path.stem for path in registry.folder("devices").glob("*.yaml"))


def load(name: str) -> Device:
    """The profile called ``name``, or the one in a YAML file; raises BadInput that names file and field."""
    path = Path(name) if name.endswith(SUFFIXES) else registry.folder("devices") / f"{name}.yaml"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if name.endswith(SUFFIXES):
            raise BadInput("no such device profile", where=name) from None
        names = known()
        raise BadInput(
            f"unknown device '{name}'",
            where="bench.devices",
            todo=f"Known: {', '.join(names)}.{closest(name, names)}",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"not valid YAML ({error})", where=str(path)) from None
    try:
        return Device.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise BadInput(f"{field}: {first['msg']}", where=str(path)) from None


def options(device: Device, kind: type[Section]) -> Any:
    """``device.options`` as the transport's own Section; raises BadInput that names the field."""
    try:
        return kind.model_validate(device.options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["options", *map(str, first["loc"])])
        raise BadInput(f"{field}: {first['msg']}", where=f"device '{device.name}'") from None


def written(device: Device, found: Mapping[str, Any]) -> dict[str, Any]:
    """A profile for the device at the other end, from what its probe found: what is known, and nothing guessed."""
    known = {
        "description": found.get("model") or found.get("browser"),
        "soc": found.get("cpu") or None,
        "ram_mb": found["memory_bytes"] // 10**6 if found.get("memory_bytes") else None,
        "os": found.get("os"),
        "abi": device.abi or ABIS.get(str(found.get("machine"))),
    }
    plain = device.model_dump(mode="json", exclude_defaults=True)
    made = {"schema_version": 1, "name": device.name, **plain, **{k: v for k, v in known.items() if v}}
    return {name: made[name] for name in Device.model_fields if name in made}


def new(name: str, transport: str, runner: str, given: Sequence[str]) -> Device:
    """A profile from the command line; ``given`` are the transport's options, ``key=value``. Raises BadInput."""
    values = {}
    for one in given:
        key, found, value = one.partition("=")
        if not found or not key:
            raise BadInput(f"'{one}' is no option", where="--option", todo="Write it like port=2222.")
        values[key] = yaml.safe_load(value)
    try:
        return Device(name=name, transport=transport, runner=runner, options=values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{first['loc'][0]}: {first['msg']}", where="device") from None
