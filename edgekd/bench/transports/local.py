"""The machine that edgekd runs on, as a device: processes instead of a wire.

Pushing makes a symbolic link, so nothing is copied. A process gets a group of its own and is killed with it,
so a runner that hangs leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from edgekd.artifact import Facts
from edgekd.bench.devices import Device
from edgekd.bench.transports._contract import Completed
from edgekd.errors import DeviceError

GRACE = 2.0  # seconds
TAIL = 400  # characters of a dead process's stderr that go into the error


def connect(device: Device) -> Local:
    """This machine is always there."""
    return Local(device.name)


class Local:
    """The Transport of this machine; see ``_contract.py``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._root = Path(tempfile.mkdtemp(prefix="edgekd-bench-"))

    def probe(self) -> Facts:
        """What this machine is, and its load now; a value that cannot be read is None."""
        return {
            "os": platform.platform(),
            "machine": platform.machine(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_bytes": _memory_bytes(),
            "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        }

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
        """Remove the folder of links."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _start(self, argv: Sequence[str], stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                list(argv), stdin=pipe, stdout=pipe, stderr=stderr, cwd=self._root, start_new_session=True
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
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        self._errors.seek(0)
        said = " | ".join(self._errors.read().decode(errors="replace").split("\n"))[-TAIL:].strip(" |")
        return DeviceError(f"the runner {how}: {said or '(it said nothing)'}", where=self._name)

    def close(self) -> None:
        """Kill the process group: what the worker had to say has been said."""
        _kill(self._process)
        self._errors.close()


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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return models[0] if models else platform.processor()


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
