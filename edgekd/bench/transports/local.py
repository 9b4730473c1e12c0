"""The machine that edgekd runs on, as a device: processes instead of a wire.

Pushing makes a symbolic link, so nothing is copied. A process gets a group of its own and is killed with it,
so a runner that hangs leaves nothing behind. Memory and processor time can be limited, to stand in for a smaller
machine: by a control group where this user may make one, else, memory only, by the size of the address space.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import Field

from edgekd.artifact import Facts
from edgekd.bench import devices
from edgekd.bench.transports import _linux
from edgekd.bench.transports._contract import Completed
from edgekd.errors import DeviceError
from edgekd.recipe import Section

GRACE = 2.0  # seconds
PERIOD_US = 100_000  # in which a control group may use its share of processor time


class Options(Section):
    """Limits of every process that is started here; null: none."""

    memory_mb: int | None = Field(None, ge=1, description="Memory, 10^6 bytes; a process that wants more is killed.")
    cpu_share: float | None = Field(
        None, gt=0, description="Processor time per time: 0.5 is half a processor, 2 are two processors."
    )


def connect(device: devices.Device) -> Local:
    """This machine is always there; raises DeviceError where it cannot be limited as the profile says."""
    return Local(device.name, _limited(device.name, devices.options(device, Options)))


class Local:
    """The Transport of this machine; see ``_contract.py``."""

    def __init__(self, name: str, limit: Limit | None = None) -> None:
        self._name, self._limit = name, limit
        self._root = Path(tempfile.mkdtemp(prefix="edgekd-bench-"))

    def probe(self) -> Facts:
        """What this machine is, and its load now; a value that cannot be read is None."""
        found = {
            "os": platform.platform(),
            "machine": platform.machine(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_bytes": _memory_bytes(),
            "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
            "temperature_c": _linux.temperature_c(
                f"{_first_line(zone / 'type')} {_first_line(zone / 'temp')}"
                for zone in Path("/sys/class/thermal").glob("thermal_zone*")
            ),
            **_linux.power(
                "|".join(_first_line(supply / part) or "" for part in ("type", "status", "online", "capacity"))
                for supply in Path("/sys/class/power_supply").glob("*")
            ),
        }
        return found if self._limit is None else {**found, "limits": self._limit.facts}

    def push(self, src: Path, dst: str) -> None:
        """A link in this transport's folder; raises DeviceError when there is no ``src``."""
        if not src.exists():
            raise DeviceError(f"there is no {src} to push", where=self._name)
        target = self._root / dst
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(src.resolve())

    def exec(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Run to the end; raises DeviceError when it cannot start or ``timeout`` seconds are over."""
        process = self._start(argv, subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise DeviceError(f"took longer than {timeout:.0f} s and was stopped", where=self._name) from None
        finally:
            _kill(process)
        return Completed(process.returncode, stdout, stderr)

    def open(self, argv: Sequence[str]) -> LocalWorker:
        """Start a process with pipes; its stderr goes to a file whose end is shown when it dies."""
        errors = tempfile.TemporaryFile(dir=self._root)  # noqa: SIM115 - the worker closes it
        return LocalWorker(self._name, self._start(argv, errors), errors)

    def pull(self, src: str, dst: Path) -> None:
        """Copy a file out of this transport's folder."""
        try:
            shutil.copyfile(self._root / src, dst)
        except FileNotFoundError:
            raise DeviceError(f"there is no '{src}' to pull", where=self._name) from None

    def close(self) -> None:
        """Remove the folder of links, and the control groups."""
        shutil.rmtree(self._root, ignore_errors=True)
        if self._limit is not None:
            self._limit.remove()

    def _start(self, argv: Sequence[str], stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
        pipe, command = subprocess.PIPE, list(argv)
        if self._limit is not None:
            if shutil.which(command[0], path=None) is None and not (self._root / command[0]).is_file():
                raise DeviceError(f"cannot start {command[0]} (no such program)", where=self._name)
            command = ["/bin/sh", "-c", self._limit.script + 'exec "$@"', "sh", *command]
        try:
            return subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=stderr, cwd=self._root, start_new_session=True
            )
        except OSError as error:
            raise DeviceError(f"cannot start {argv[0]} ({error.strerror})", where=self._name) from None


class LocalWorker:
    """A process that answers lines; see ``_contract.Worker``."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._name, self._process, self._errors = name, process, errors
        self._stdin, self._stdout = process.stdin, process.stdout
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # b"" when stdout ended
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def ask(self, line: bytes, *, timeout: float) -> bytes:
        """Send a line and wait for one; raises DeviceError on time-out or when the process ended."""
        try:
            self._stdin.write(line.rstrip(b"\n") + b"\n")
            self._stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._died() from None
        try:
            answer = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise DeviceError(f"no answer within {timeout:.0f} s; the runner was stopped", where=self._name) from None
        if not answer:
            raise self._died()
        return answer

    def _died(self) -> DeviceError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE)  # its pipe ends a moment before it does: keep its own exit code
        _kill(self._process)
        if self._errors.closed:
            return DeviceError("the runner has ended", where=self._name)
        self._errors.seek(0)
        return self._explain(self._process.returncode, self._errors.read())

    def _explain(self, code: int, stderr: bytes) -> DeviceError:
        """The error for a process that ended unasked."""
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        return DeviceError(f"the runner {how}: {_linux.said(stderr) or '(it said nothing)'}", where=self._name)

    def close(self) -> None:
        """Kill the process group: what the worker had to say has been said."""
        _kill(self._process)
        self._errors.close()


@dataclass(frozen=True)
class Limit:
    """How processes are held back: what a shell does before it becomes one of them."""

    facts: Facts
    script: str
    groups: tuple[Path, ...] = ()

    def remove(self) -> None:
        """Remove the control groups; processes in them have been killed and need a moment to be gone."""
        for group in self.groups:
            for _ in range(100):
                with contextlib.suppress(FileNotFoundError, OSError):
                    group.rmdir()
                if not group.exists():
                    break
                time.sleep(0.02)


def _limited(name: str, options: Options) -> Limit | None:
    """The limit by control groups of version 2, else 1, else by ``ulimit``; None where none is asked for."""
    wanted: dict[str, float] = {}
    if options.memory_mb is not None:
        wanted["memory"] = options.memory_mb * 1_000_000
    if options.cpu_share is not None:
        wanted["cpu"] = options.cpu_share
    if not wanted:
        return None
    facts: Facts = {"memory_mb": options.memory_mb, "cpu_share": options.cpu_share}
    label = f"edgekd-{secrets.token_hex(6)}"
    for version, make in (("cgroup v2", _group_v2), ("cgroup v1", _groups_v1)):
        groups = make(label, wanted)
        if groups is not None:
            script = "".join(f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))} && " for group in groups)
            return Limit({**facts, "by": version}, script, groups)
    if os.name == "posix" and "cpu" not in wanted:
        return Limit({**facts, "by": "address space"}, f"ulimit -v {int(wanted['memory']) // 1024} && ")
    raise DeviceError(
        "this user cannot limit processor time here: there is no control group to write to",
        where=name,
        todo="Run as root, or in a scope that systemd delegates, or leave out options.cpu_share.",
    )


def _group_v2(label: str, wanted: Mapping[str, float]) -> tuple[Path, ...] | None:
    """A group under the first folder of the unified hierarchy that has the controllers and lets this user in."""
    for mount in _mounts("cgroup2"):
        for parent in (mount, *_own_groups(mount, "0::")):
            group = parent / label
            try:
                if not set(wanted) <= set((parent / "cgroup.controllers").read_text().split()):
                    continue
                switch = parent / "cgroup.subtree_control"
                if not set(wanted) <= set(switch.read_text().split()):
                    switch.write_text(" ".join(f"+{controller}" for controller in wanted))
                group.mkdir()
            except OSError:
                continue
            try:
                if "memory" in wanted:
                    (group / "memory.max").write_text(str(int(wanted["memory"])))
                    with contextlib.suppress(OSError):
                        (group / "memory.swap.max").write_text("0")
                if "cpu" in wanted:
                    (group / "cpu.max").write_text(f"{int(wanted['cpu'] * PERIOD_US)} {PERIOD_US}")
                return (group,)
            except OSError:
                group.rmdir()
    return None


def _groups_v1(label: str, wanted: Mapping[str, float]) -> tuple[Path, ...] | None:
    """A group in the hierarchy of each controller."""
    made: list[Path] = []
    try:
        for controller, value in wanted.items():
            [mount, *_] = _mounts("cgroup", controller)
            group = mount / label
            group.mkdir()
            made.append(group)
            if controller == "memory":
                (group / "memory.limit_in_bytes").write_text(str(int(value)))
                with contextlib.suppress(OSError):  # absent where the kernel does not count swap
                    (group / "memory.memsw.limit_in_bytes").write_text(str(int(value)))
            else:
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(int(value * PERIOD_US)))
        return tuple(made)
    except (OSError, ValueError):
        for group in made:
            group.rmdir()
        return None


def _mounts(kind: str, controller: str = "") -> list[Path]:
    """Where file systems of this kind (with this controller among their options) are mounted: /proc/mounts."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines]
    return [Path(one[1]) for one in fields if one[2] == kind and (not controller or controller in one[3].split(","))]


def _own_groups(mount: Path, prefix: str) -> list[Path]:
    """The parents of this process's own group: a delegated scope lets its user make siblings."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    own = next((line.removeprefix(prefix) for line in lines if line.startswith(prefix)), "/")
    return [mount / parent.relative_to("/") for parent in PurePosixPath(own).parents if str(parent) != "/"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started; when it already ended, keep its exit code."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def _cpu_model() -> str:
    try:
        return _linux.cpu_name(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or platform.processor()
    except OSError:
        return platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
