"""Device profiles: one YAML per known device. Data, not code; nothing here talks to a device.

A device is named in the recipe (``bench.devices``) by the name of a file in ``devices/``, or by the path of a
YAML file of one's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import yaml
from pydantic import Field

from edgekd.errors import BadInput, Environment, closest
from edgekd.recipe import Section


class Device(Section):
    """What a device is and how it is reached."""

    schema_version: Literal[1] = Field(1, description="Version of this format.")
    name: str = Field(description="Appears in every measurement.")
    description: str = Field("", description="For people.")
    transport: str = Field(description="A module of edgekd/bench/transports/ or a plug-in.")
    runner: str = Field(description="Program that is run on it, a file of runtimes/.")
    python: str | None = Field(None, description="Its Python interpreter; default: the one that runs edgekd.")
    cpu_affinity: list[int] | None = Field(None, description="Processors to stay on; default: the system chooses.")


def data_folder(name: str) -> Path:
    """``devices`` or ``runtimes``: in the checkout, or in the installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise Environment(f"the folder '{name}' is missing from this installation", todo="Install edgekd again.")


def load(name: str) -> Device:
    """The profile called ``name``, or the one in a YAML file; raises BadInput that names file and field."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else data_folder("devices") / f"{name}.yaml"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem for p in data_folder("devices").glob("*.yaml"))
        raise BadInput(
            f"unknown device '{name}'",
            where="bench.devices",
            todo=f"Known: {', '.join(known)}.{closest(name, known)}",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"not valid YAML ({error})", where=str(path)) from None
    try:
        return Device.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "file"
        raise BadInput(f"{field}: {first['msg']}", where=str(path)) from None
