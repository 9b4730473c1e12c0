"""ADB and SSH to an emulated ARM board with a real adbd and a real sshd: see tests/devices/arm_board.sh.

The board is fetched once, into EDGEKD_ARM_BOARD or the user's cache, and switched on for these tests. What is measured
on it says nothing about time; that outputs agree, and what faults look like, is real.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _wire
import pytest

from edgekd.bench import devices
from edgekd.bench.transports import adb, ssh
from edgekd.errors import DeviceError

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[1] / "devices" / "arm_board.sh"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgekd" / "arm-board"
TOOLS = ("adb", "ip", "unshare", "ss", "dpkg", "apt-get", "sshd", "ssh-keygen", "flock")
WHEELS = ("onnxruntime", "numpy")
PYTHON = "/usr/bin/python3.11"


class Board:
    """The board, switched on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [SCRIPT, "run", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        word, _, self.address = self._answer().partition(" ")
        if word != "ready":
            self.off()
            pytest.skip(f"the board does not start: {word} {self.address}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.adb_port = free.getsockname()[1]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def command(self, name: str) -> None:
        """``kill-adbd`` and the like; returns when it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        assert self._answer() == f"done {name}"

    def profile(self, transport: str, **options: Any) -> devices.Device:
        given: dict[str, Any] = {"connect": f"{self.address}:5555", "server_port": self.adb_port}
        if transport == "ssh":
            keys = self.folder / "ssh"
            given = {"host": self.address, "port": 2222, "user": "root", "key": keys / "user"}
            given["known_hosts"] = keys / "known_hosts"
        return _wire.profile(transport, python=PYTHON, **{**given, **options})

    def connect(self, transport: str) -> Any:
        return {"adb": adb, "ssh": ssh}[transport].connect(self.profile(transport))

    def off(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="session")
def board() -> Iterator[Board]:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin") is None]
    if platform.machine() != "x86_64" or missing or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip(f"an emulated board needs x86_64 Linux, root and {', '.join(TOOLS)} (missing: {missing})")
    pytest.importorskip("asyncssh", reason="asyncssh is not installed")
    folder = Path(os.environ.get("EDGEKD_ARM_BOARD", CACHE))
    if not (folder / "root").is_dir():
        from importlib.metadata import version

        wheels = [f"{name}=={version(name)}" for name in WHEELS]
        done = subprocess.run(
            [SCRIPT, "fetch", folder, *wheels],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHON": sys.executable},
        )
        if done.returncode != 0:
            pytest.skip(f"the board cannot be fetched: {done.stderr[-300:]}")
    made = Board(folder)
    yield made
    subprocess.run(["adb", "-P", str(made.adb_port), "kill-server"], capture_output=True, timeout=30)
    made.off()


@pytest.fixture(params=["adb", "ssh"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def transport(board: Board, kind: str) -> Iterator[Any]:
    made = board.connect(kind)
    yield made
    made.close()


@pytest.fixture
def revived(board: Board) -> Iterator[Callable[[str], None]]:
    """Kill a server of the board; it is started again when the test ends."""
    killed: list[str] = []

    def kill(name: str) -> None:
        killed.append(name)
        board.command(f"kill-{name}")

    yield kill
    for name in killed:
        board.command(f"start-{name}")


def test_files(transport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _wire.files(transport, tmp_path, monkeypatch)


def test_commands(transport: Any) -> None:
    _wire.commands(transport, "aarch64")


def test_workers(transport: Any) -> None:
    _wire.workers(transport)


def test_time_outs(transport: Any) -> None:
    _wire.time_outs(transport)


def test_programs_that_do_not_start(board: Board, transport: Any, tmp_path: Path) -> None:
    _wire.programs(transport, _wire.Here(board.folder / "root" / "bin" / "ls", "aarch64"), tmp_path)


def test_this_machines_programs_do_not_run_there(transport: Any) -> None:
    transport.push(Path("/bin/true").resolve(), "host-program")
    with pytest.raises(DeviceError, match="built for x86_64, but the device is aarch64"):
        transport.exec(["./host-program"], stdin=b"", timeout=60)


def test_the_probe(transport: Any, kind: str) -> None:
    found = transport.probe()
    assert found["machine"] == "aarch64" and found["cpu"] == "Cortex-A76" and "Debian" in found["os"]
    if kind == "adb":
        assert (found["model"], found["abi"], found["sdk"]) == ("edgekd-emulated", "arm64-v8a", 34)
        assert found["battery_percent"] is None and found["thermal_status"] is None and found["screen_on"] is None


def test_outputs_agree(board: Board, kind: str, data: Any, export: Any, tmp_path: Path) -> None:
    """The Python runner and a model on the board's onnxruntime give the Program's golden outputs."""
    facts = _wire.bench(
        board.profile(kind).model_copy(update={"abi": "aarch64", "emulated": True}),
        {"data": data, "onnx-fp32": export("onnx", "fp32")},
        tmp_path,
        seconds=120,
    )
    for row in facts["summaries"]:
        assert row["error"] is None and row["runs"] == 4
        assert row["golden"]["agreement"] == 1 and row["golden"]["max_abs_delta"] < 1e-5
    assert facts["environments"]["there"]["machine"] == "aarch64"


@pytest.mark.parametrize("how", ["exec", "worker", "push"])
def test_a_server_that_is_killed_meanwhile(
    board: Board, kind: str, revived: Callable[[str], None], tmp_path: Path, how: str
) -> None:
    server = {"adb": "adbd", "ssh": "sshd"}[kind]
    made = board.connect(kind)
    worker = made.open(["cat"])
    assert worker.ask(b"one", timeout=60) == b"one\n"
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    with pytest.raises(DeviceError, match="the connection broke"):
        if how == "push":
            revived(server)
            made.push(tmp_path / "file", "file")
        else:
            slow = made.open(["sleep", "30"])
            timer = threading.Timer(1, revived, [server])
            timer.start()
            try:
                if how == "exec":
                    made.exec(["sleep", "30"], stdin=b"", timeout=60)
                else:
                    slow.ask(b"go", timeout=60)
            finally:
                timer.join()
    with pytest.raises(DeviceError):
        worker.ask(b"two", timeout=60)
    with pytest.raises(DeviceError):
        made.probe()
    began = time.monotonic()
    worker.close()
    made.close()
    assert time.monotonic() - began < 15


def test_a_board_that_is_off_and_on_again(board: Board, kind: str, revived: Callable[[str], None]) -> None:
    """adb keeps a stale connection, which is said when the device is off and dropped when it is on."""
    board.connect(kind).close()
    server = {"adb": "adbd", "ssh": "sshd"}[kind]
    revived(server)
    with pytest.raises(DeviceError, match=r"cannot connect to [\d.]+:\d+"):
        board.connect(kind)
    board.command(f"start-{server}")
    made = board.connect(kind)
    assert made.exec(["true"], stdin=b"", timeout=60).code == 0
    made.close()
    board.command(f"kill-{server}")


def test_a_disk_that_is_full(board: Board, kind: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(5_000_000))
    made = board.connect(kind)
    board.command("fill")
    try:
        with pytest.raises(DeviceError, match=r"no space left for big: it has 5.0 MB, free are [01]\.. MB"):
            made.push(tmp_path / "big", "big")
    finally:
        board.command("empty")
    made.push(tmp_path / "big", "big")
    made.close()
