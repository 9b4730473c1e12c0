"""The SSH transport against a real sshd on loopback, with keys and configuration of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _wire
import psutil
import pytest

from edgekd.bench import devices
from edgekd.bench.transports import _linux, ssh
from edgekd.errors import BadInput, DeviceError

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Server:
    """An sshd that this user may log in to."""

    def __init__(self, folder: Path, small: bool = False) -> None:
        self.folder, self.killing = folder, threading.Lock()
        (folder / "device").mkdir()
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\nUsePAM no\nStrictModes no\nSubsystem sftp internal-sftp\n"
        )
        self.trust("host")
        command = f"exec {SSHD} -D -e -f {folder}/config"
        if small:  # a disk that goes with the server
            command = f"mount -t tmpfs -o size=3m tmpfs {folder}/device && {command}"
        self.process = subprocess.Popen(
            [*["unshare", "--mount"] * small, "sh", "-c", command], stderr=(folder / "log").open("w")
        )
        for _ in range(200):
            if "listening" in (folder / "log").read_text():
                return
            time.sleep(0.05)
        self.kill()
        pytest.skip(f"sshd does not start: {(folder / 'log').read_text()}")

    def trust(self, name: str) -> None:
        kind, key, *_ = (self.folder / f"{name}.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def profile(self, **options: Any) -> devices.Device:
        given = {
            "host": "127.0.0.1",
            "port": self.port,
            "key": self.folder / "user",
            "known_hosts": self.folder / "known_hosts",
            "folder": str(self.folder / "device"),
        }
        return _wire.profile("ssh", python=sys.executable, **{**given, **options})

    def kill(self) -> None:
        """The listener and every connection, but not what was started through them; once, whoever asks."""
        with self.killing:
            if self.process.poll() is not None:
                return
            for one in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself, just now
                    if one is self.process or "sshd" in one.name():
                        one.kill()
            self.process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("asyncssh", reason="asyncssh is not installed")
    if SSHD is None:
        pytest.skip("no sshd here (Debian: openssh-server)")
    separation = Path("/run/sshd")
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir()
    servers: list[Server] = []

    def start(**options: bool) -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        servers.append(Server(folder, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
    if made:
        separation.rmdir()


@pytest.fixture
def server(started: Any) -> Server:
    found: Server = started()
    return found


@pytest.fixture
def transport(server: Server) -> Iterator[ssh.Ssh]:
    made = ssh.connect(server.profile())
    yield made
    made.close()
    assert not list((server.folder / "device").glob("run-*"))
    assert not [one for one in threading.enumerate() if one.name == "ssh there"]


@pytest.fixture
def here() -> _wire.Here:
    program = Path("/bin/ls")
    if platform.system() != "Linux" or b"libselinux.so.1" not in program.read_bytes():
        pytest.skip("no program here to break: /bin/ls does not use libselinux.so.1")
    return _wire.Here(program, platform.machine())


def test_files(transport: ssh.Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _wire.files(transport, tmp_path, monkeypatch)


def test_commands_and_probe(transport: ssh.Ssh) -> None:
    _wire.commands(transport, platform.machine())
    assert transport.probe()["cores"] == os.cpu_count()


def test_workers(transport: ssh.Ssh) -> None:
    _wire.workers(transport)


def test_time_outs(transport: ssh.Ssh) -> None:
    _wire.time_outs(transport)


def test_programs_that_do_not_start(transport: ssh.Ssh, here: _wire.Here, tmp_path: Path) -> None:
    _wire.programs(transport, here, tmp_path)


def test_links_are_not_needed(transport: ssh.Ssh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hard links are forbidden, a program is a copy: $ORIGIN is where it lies."""
    link = transport._link
    monkeypatch.setattr(transport, "_link", lambda blob, place: link(blob, place).replace("; ln ", "; false "))
    for name, mode in (("data", 0o644), ("program", 0o755)):
        (tmp_path / name).write_text("#!/bin/sh\necho ran\n")
        (tmp_path / name).chmod(mode)
        transport.push(tmp_path / name, f"bin/{name}")
    assert transport.exec(["test", "-L", "bin/data"], stdin=b"", timeout=60).code == 0
    assert transport.exec(["test", "-L", "bin/program"], stdin=b"", timeout=60).code == 1
    assert transport.exec(["bin/program"], stdin=b"", timeout=60).stdout == b"ran\n"


def test_the_cache_outlives_the_session(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").write_bytes(b"x" * 100)
    for _ in range(2):
        made = ssh.connect(server.profile())
        made.push(tmp_path / "model", "model")
        made.close()
        made.close()  # twice does no harm
        monkeypatch.setattr(ssh.Ssh, "_upload", None)
    [kept] = (server.folder / "device" / "cache").iterdir()
    assert kept.stat().st_size == 100
    kept.chmod(0o644)
    kept.write_bytes(b"x")  # cut off
    monkeypatch.undo()
    made = ssh.connect(server.profile())
    made.push(tmp_path / "model", "model")
    made.pull("model", tmp_path / "back")
    made.close()
    assert (tmp_path / "back").read_bytes() == b"x" * 100


def test_a_bench_over_ssh(server: Server, data: Any, export: Any, tmp_path: Path) -> None:
    parents = {"data": data, "onnx-fp32": export("onnx", "fp32"), "onnx-w8a8": export("onnx", "w8a8", content=b"none")}
    facts = _wire.bench(server.profile(), parents, tmp_path)
    for row in facts["summaries"]:
        if row["scheme"] == "fp32":
            assert row["error"] is None and row["runs"] == 4 and row["device"] == "there"
            assert row["golden"]["agreement"] == 1 and row["golden"]["max_abs_delta"] < 1e-5
        else:
            assert "the runner failed" in row["error"]
    assert facts["environments"]["there"]["machine"] == platform.machine()
    assert not list((server.folder / "device").glob("run-*"))


# --- faults ---


def test_the_host_key_is_verified(server: Server) -> None:
    server.trust("stranger")
    with pytest.raises(DeviceError, match=r"another host key .* another machine answers.*ssh-keygen -R"):
        ssh.connect(server.profile())
    (server.folder / "known_hosts").write_text("")
    with pytest.raises(DeviceError, match=r"is not in .*known_hosts. .*ssh-keyscan -p"):
        ssh.connect(server.profile())
    with pytest.raises(DeviceError, match=r"is not in .*nowhere"):
        ssh.connect(server.profile(known_hosts=server.folder / "nowhere"))


def test_a_key_that_is_not_accepted(server: Server) -> None:
    with pytest.raises(DeviceError, match=r"does not accept the key .*stranger for the user .*authorized_keys"):
        ssh.connect(server.profile(key=server.folder / "stranger"))
    with pytest.raises(DeviceError, match=r"cannot read the key .*nowhere"):
        ssh.connect(server.profile(key=server.folder / "nowhere"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", server.folder / "locked"], check=True)
    with pytest.raises(DeviceError, match="needs a passphrase"):
        ssh.connect(server.profile(key=server.folder / "locked"))


def test_the_keys_of_the_agent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket_path = server.folder / "agent"
    monkeypatch.setenv("HOME", str(tmp_path))  # no keys in ~/.ssh
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket_path))
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if socket_path.exists():
                break
            time.sleep(0.05)
        with pytest.raises(DeviceError, match="any key of the agent"):
            ssh.connect(server.profile(key=None))
        subprocess.run(["ssh-add", "-q", server.folder / "user"], check=True)
        made = ssh.connect(server.profile(key=None, user=getpass.getuser()))
        assert made.exec(["true"], stdin=b"", timeout=60).code == 0
        made.close()
    finally:
        agent.kill()
        agent.wait()


def test_a_server_that_is_not_there(server: Server) -> None:
    server.kill()
    with pytest.raises(DeviceError, match=r"cannot connect to 127.0.0.1:\d+ .*refused"):
        ssh.connect(server.profile())


def test_a_server_that_says_nothing(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        (server.folder / "known_hosts").write_text(f"[127.0.0.1]:{port} ssh-ed25519 AAAA\n")
        with pytest.raises(DeviceError, match="within 1 s"):
            ssh.connect(server.profile(port=port, connect_timeout_seconds=1))


@pytest.mark.parametrize("how", ["exec", "worker", "push"])
def test_a_server_that_is_killed_meanwhile(server: Server, tmp_path: Path, how: str) -> None:
    made = ssh.connect(server.profile())
    worker = made.open(["cat"])
    assert worker.ask(b"one", timeout=60) == b"one\n"
    with pytest.raises(DeviceError, match="the connection broke"):
        if how == "exec":
            threading.Timer(1, server.kill).start()
            made.exec(["sleep", "30"], stdin=b"", timeout=60)
        elif how == "worker":
            slow = made.open(["sleep", "30"])
            threading.Timer(1, server.kill).start()
            slow.ask(b"go", timeout=60)
        else:
            server.kill()
            (tmp_path / "file").write_bytes(b"x" * 1_000_000)
            made.push(tmp_path / "file", "file")
    with pytest.raises(DeviceError):
        worker.ask(b"two", timeout=60)
    with pytest.raises(DeviceError):
        made.exec(["true"], stdin=b"", timeout=60)
    began = time.monotonic()
    worker.close()
    made.close()
    assert time.monotonic() - began < 15
    with pytest.raises(DeviceError):
        made.exec(["true"], stdin=b"", timeout=60)


def test_a_bench_whose_server_is_killed(server: Server, data: Any, export: Any, tmp_path: Path) -> None:
    """Every artefact gets an error, and the bench an end."""
    threading.Timer(2.5, server.kill).start()
    import edgekd.bench.transports.ssh as module

    made = module.Ssh.open
    try:
        module.Ssh.open = lambda self, argv: made(self, ["sleep", "60"])  # type: ignore[method-assign]
        facts = _wire.bench(server.profile(), {"data": data, "onnx-fp32": export("onnx", "fp32")}, tmp_path)
    finally:
        module.Ssh.open = made  # type: ignore[method-assign]
    assert {"the connection broke" in row["error"] for row in facts["summaries"]} == {True}


def test_a_disk_that_is_full(started: Any, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root to mount a small disk")
    made = ssh.connect(started(small=True).profile())
    (tmp_path / "small").write_bytes(b"x" * 100_000)
    (tmp_path / "big").write_bytes(bytes(5_000_000))
    made.push(tmp_path / "small", "small")
    with pytest.raises(DeviceError, match=r"no space left for big: it has 5.0 MB, free are [23].. MB.* Free space"):
        made.push(tmp_path / "big", "big")
    made.push(tmp_path / "small", "still/works")
    made.close()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(DeviceError, match=r"pip install 'edgekd\[ssh\]'"):
        ssh.connect(_wire.profile("ssh", host="nowhere"))


@pytest.mark.parametrize(
    "wrong", [{"password": "x"}, {"host": ""}, {"port": 0}, {"folder": "here"}, {"known_hosts": None}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=rf"device 'there': options\.{next(iter(wrong))}"):
        ssh.connect(_wire.profile("ssh", **{"host": "nowhere", **wrong}))


# --- what /proc and /sys say ---


def test_processors_are_named() -> None:
    arm = "".join(
        f"processor: {n}\nCPU implementer : 0x41\nCPU part\t: {part}\n\n"
        for n, part in enumerate(["0xd05"] * 4 + ["0xd0b"] * 2)
    )
    assert _linux.cpu_name(arm) == "4x Cortex-A55, 2x Cortex-A76"
    assert _linux.cpu_name("CPU implementer : 0x41\nCPU part : 0xd03\nHardware : BCM2835\n") == "Cortex-A53"
    assert _linux.cpu_name("CPU implementer : 0x51\nCPU part : 0x800\nHardware : Qualcomm SM1\n") == "Qualcomm SM1"
    assert _linux.cpu_name("processor : 0\nmodel name : Some CPU @ 2 GHz\n") == "Some CPU @ 2 GHz"
    assert _linux.cpu_name("") is None


def test_temperatures_and_power() -> None:
    assert _linux.temperature_c(["battery 30100", "cpu-0-1 41500", "cpu-0-2 43000", "gpu 50000"]) == 43.0
    assert _linux.temperature_c(["acpitz 27800", " 0", "x -274000", "y 40"]) == 40.0
    assert _linux.temperature_c([]) is None
    assert _linux.power(["Battery|Discharging||63", "Mains||0|"]) == {"on_battery": True, "battery_percent": 63}
    assert _linux.power(["Battery|Charging||100", "USB||1|"])["on_battery"] is False
    assert _linux.power(["Mains||1|"]) == {"on_battery": False, "battery_percent": None}
    assert _linux.power([]) == {"on_battery": None, "battery_percent": None}


def test_a_probe_of_nothing_is_full_of_none() -> None:
    assert set(_linux.parse("").values()) == {None}


def test_elf_headers() -> None:
    head = b"\x7fELF\x02\x01" + bytes(12)
    assert _linux.elf_machine(head + (183).to_bytes(2, "little")) == "aarch64"
    assert _linux.elf_machine(b"\x7fELF\x02\x02" + bytes(12) + (22).to_bytes(2, "big")) == "s390x"
    assert _linux.elf_machine(head + (999).to_bytes(2, "little")) == "ELF machine 999"
    assert _linux.elf_machine(b"#!/bin/sh") is None
