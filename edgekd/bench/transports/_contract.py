"""What a transport is: how files and commands get to a device and back. It is not a benchmark.

A module ``edgekd/bench/transports/<name>.py`` (or a plug-in) defines ``connect(device) -> Transport``.
Paths on the device are relative to a folder that the transport makes for itself and removes in ``close``.
All methods raise DeviceError when the device cannot be reached, when time is up, or when a worker ends
unasked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekd.artifact import Facts
from edgekd.errors import DeviceError


class Waiting(DeviceError):
    """The device answers later: the question was written down, and somebody has to carry it there."""


@dataclass(frozen=True)
class Completed:
    """A command that ended."""

    code: int
    stdout: bytes
    stderr: bytes


class Worker(Protocol):
    """A process on the device that answers one line with one line until it is closed."""

    def ask(self, line: bytes, *, timeout: float) -> bytes:
        """Send a line, return the next line it writes. After a DeviceError the worker is dead."""
        ...

    def close(self) -> None:
        """End it; never raises."""
        ...


class Transport(Protocol):
    """A connection to one device."""

    def probe(self) -> Facts:
        """What the device is, and its load now: os, cpu, cores, memory_bytes, governor, load_average."""
        ...

    def push(self, src: Path, dst: str) -> None:
        """Make the file or folder ``src`` available on the device as ``dst``."""
        ...

    def exec(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Run a command to its end in the transport's folder."""
        ...

    def open(self, argv: Sequence[str]) -> Worker:
        """Start a command that stays."""
        ...

    def pull(self, src: str, dst: Path) -> None:
        """Copy the file ``src`` of the device to ``dst``."""
        ...

    def close(self) -> None:
        """Remove what was pushed and end the connection; never raises."""
        ...


class Module(Protocol):
    """The module contract. ``device`` is a ``bench.devices.Device``."""

    def connect(self, device: Any) -> Transport:
        """Reach the device, or raise DeviceError."""
        ...
