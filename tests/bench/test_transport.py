"""The local transport and device profiles: processes that answer, crash, hang and are cleaned up."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd import registry
from edgekd.bench import devices
from edgekd.bench.transports.local import Local, connect
from edgekd.errors import BadInput, DeviceError

ECHO = "import sys\nfor line in sys.stdin: print('>' + line.strip(), flush=True)"


@pytest.fixture
def local() -> Iterator[Local]:
    transport = registry.load("transports", "local").connect(devices.load("local"))
    yield transport
    transport.close()


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-c", *arguments]


def test_exec_push_pull(local: Local, tmp_path: Path) -> None:
    (tmp_path / "given.txt").write_text("given")
    local.push(tmp_path / "given.txt", "folder/given.txt")
    script = "import sys; open('made.txt', 'w').write(open('folder/given.txt').read() + sys.stdin.read()); sys.exit(3)"
    done = local.exec(python(script), stdin=b"!", timeout=60)
    assert (done.code, done.stdout) == (3, b"")
    local.pull("made.txt", tmp_path / "made.txt")
    assert (tmp_path / "made.txt").read_text() == "given!"


def test_what_is_not_there_is_said(local: Local, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nothing"):
        local.push(tmp_path / "nothing", "x")
    with pytest.raises(DeviceError, match=r"no 'x'"):
        local.pull("x", tmp_path / "x")
    with pytest.raises(DeviceError, match="cannot start"):
        local.exec(["edgekd-no-such-program"], stdin=b"", timeout=5)


def test_probe_tells_what_the_machine_is(local: Local) -> None:
    found = local.probe()
    assert found["cores"] == os.cpu_count()
    facts = "os machine cpu cores memory_bytes governor load_average temperature_c on_battery battery_percent"
    assert set(found) == set(facts.split())


def test_a_command_that_hangs_is_stopped(local: Local) -> None:
    began = time.monotonic()
    with pytest.raises(DeviceError, match="longer than 1 s"):
        local.exec(python("import time; time.sleep(60)"), stdin=b"", timeout=1)
    assert time.monotonic() - began < 20


def test_a_worker_answers_line_by_line(local: Local) -> None:
    worker = local.open(python(ECHO))
    assert worker.ask(b"one", timeout=60) == b">one\n"
    assert worker.ask(b"two\n", timeout=60) == b">two\n"
    worker.close()
    worker.close()  # twice does no harm


def test_a_worker_that_crashes_tells_how(local: Local) -> None:
    worker = local.open(python("import os, sys; sys.stdin.readline(); os.write(2, b'ouch'); os.abort()"))
    with pytest.raises(DeviceError, match=r"killed by signal 6: ouch"):
        worker.ask(b"go", timeout=60)
    with pytest.raises(DeviceError):
        worker.ask(b"again", timeout=60)
    worker.close()
    worker = local.open(python("import sys; sys.exit('no model')"))
    with pytest.raises(DeviceError, match=r"exited with 1: no model"):
        worker.ask(b"go", timeout=60)
    worker.close()


def test_a_worker_that_hangs_is_killed_with_its_children(local: Local, tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(60)"
    )
    worker = local.open(python(script, str(tmp_path / "pid")))
    with pytest.raises(DeviceError, match="no answer within 3 s"):
        worker.ask(b"go", timeout=3)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child of the worker still runs")


HUNGRY = "import sys; held = bytearray(int(sys.argv[1]) * 1_000_000); print(len(held))"


def limited(**options: float) -> Local:
    return connect(devices.load("local").model_copy(update={"options": options}))


def test_memory_is_limited() -> None:
    transport = limited(memory_mb=200)
    try:
        assert transport.exec(python(HUNGRY, "50"), stdin=b"", timeout=60).stdout == b"50000000\n"
        assert transport.exec(python(HUNGRY, "500"), stdin=b"", timeout=60).code != 0
        worker = transport.open(python("import sys\nfor line in sys.stdin: bytearray(500_000_000)"))
        with pytest.raises(DeviceError, match=r"signal 9|MemoryError"):
            worker.ask(b"go", timeout=60)
        worker.close()
        assert transport.probe()["limits"]["memory_mb"] == 200
        with pytest.raises(DeviceError, match="cannot start edgekd-no-such-program"):
            transport.exec(["edgekd-no-such-program"], stdin=b"", timeout=5)
    finally:
        transport.close()
    assert transport._limit and not any(group.exists() for group in transport._limit.groups)


def test_memory_is_limited_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.bench.transports.local._mounts", lambda *_: [])
    transport = limited(memory_mb=200)
    assert transport.probe()["limits"]["by"] == "address space"
    assert transport.exec(python(HUNGRY, "50"), stdin=b"", timeout=60).code == 0
    assert b"MemoryError" in transport.exec(python(HUNGRY, "500"), stdin=b"", timeout=60).stderr
    transport.close()
    with pytest.raises(DeviceError, match="cannot limit processor time"):
        limited(memory_mb=200, cpu_share=0.5)


def test_processor_time_is_limited() -> None:
    try:
        transport = limited(cpu_share=0.2)
    except DeviceError as error:
        pytest.skip(str(error))
    spin = "import time; a = time.time()\nwhile time.process_time() < 0.4: pass\nprint(time.time() - a)"
    done = transport.exec(python(spin), stdin=b"", timeout=60)
    transport.close()
    assert float(done.stdout) > 1.2
    assert transport._limit and not any(group.exists() for group in transport._limit.groups)


def test_options_are_checked() -> None:
    with pytest.raises(BadInput, match=r"options\.memory: .*"):
        limited(memory=200)


def test_devices_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    assert devices.load("local").transport == "local"
    (tmp_path / "mine.yaml").write_text("name: mine\ntransport: local\nrunner: linux/python/edgekd_runner.py\n")
    assert devices.load(str(tmp_path / "mine.yaml")).name == "mine"
    for name in ("devices", "runtimes"):
        assert registry.folder(name).is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x\n", "transport"), ("name: x\ncolour: red\n", "colour|transport"), ("a: [\n", "YAML"), ("", "valid")],
)
def test_a_wrong_profile_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(BadInput, match=message) as error:
        devices.load(str(tmp_path / "bad.yaml"))
    assert "bad.yaml" in str(error.value)


def test_an_unknown_device_lists_the_known() -> None:
    with pytest.raises(BadInput, match=r"Known: .*local.*Did you mean 'local'"):
        devices.load("locl")


@pytest.mark.parametrize("name", devices.known())
def test_every_profile_that_comes_with_edgekd_is_whole(name: str) -> None:
    """Its name is its file's, its transport exists, and its processors are numbered once."""
    device = devices.load(name)
    assert device.name == name and device.description
    assert device.transport in registry.names("transports")
    numbers = [cpu for cluster in device.clusters for cpu in cluster.cpus]
    assert sorted(numbers) == list(range(len(numbers)))
    assert set(device.cpu_affinity or ()) <= set(numbers or device.cpu_affinity or ())
    assert device.runner in ("native", "browser") or (registry.folder("runtimes") / device.runner).is_file()
    if device.transport not in ("local", "browser") and not device.emulated and "loopback" not in name:
        assert device.sources, "facts about somebody else's device say where they come from"
