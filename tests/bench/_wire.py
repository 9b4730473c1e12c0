"""What every transport to another machine must do, as checks of one that is connected; and a bench through it.

``Here`` is what the checks need to know of the device: programs of it that they may break.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekd import artifact, recipe
from edgekd.bench import devices, stage
from edgekd.errors import DeviceError

NASTY = ["a b", "$(touch hacked)", "`touch hacked`", "'; touch hacked; '", '"', "*", "\\n", "-n", "é", "", "a\nb", "~"]
SETTINGS = ("min_runs=4", "min_seconds=0", "warmup_runs=1", "warmup_seconds=0", "cold_loads=1", "blocks=2")
RUNNER = "linux/python/edgekd_runner.py"


@dataclass(frozen=True)
class Here:
    """A dynamically linked program of the device (ls), and what uname -m says there."""

    program: Path
    machine: str


def profile(transport: str, *, python: str | None = None, **options: Any) -> devices.Device:
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return devices.Device(name="there", transport=transport, runner=RUNNER, python=python, options=shown)


def files(transport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files cross once, folders and names of any kind arrive, programs keep their mode, and come back."""
    sent = []
    upload = transport._upload
    monkeypatch.setattr(transport, "_upload", lambda src, dst: (sent.append(src.name), upload(src, dst)))
    folder = tmp_path / "given"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a $(b) 'c'").write_bytes(b"\0\r\n\xff" * 1000)
    (folder / "sub dir" / "run.sh").write_text("#!/bin/sh\necho ran $1\n")
    (folder / "sub dir" / "run.sh").chmod(0o755)
    (folder / "sub dir" / "same").write_text("#!/bin/sh\necho ran $1\n")  # the same bytes, but no program
    transport.push(folder, "x/nasty ' $HOME")
    assert sorted(sent) == ["a $(b) 'c'", "run.sh", "same"]
    transport.push(folder, "again")
    transport.push(folder / "a $(b) 'c'", "one")
    assert len(sent) == 3
    (folder / "a $(b) 'c'").write_bytes(b"changed")
    transport.push(folder, "again")
    assert len(sent) == 4
    for name, content in (("again/a $(b) 'c'", b"changed"), ("one", b"\0\r\n\xff" * 1000)):
        transport.pull(name, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
    done = transport.exec(["./x/nasty ' $HOME/sub dir/run.sh", "'$x"], stdin=b"", timeout=60)
    assert (done.code, done.stdout) == (0, b"ran '$x\n")
    with pytest.raises(DeviceError, match=r"cannot start again/sub dir/same.*[Pp]ermission"):
        transport.exec(["again/sub dir/same"], stdin=b"", timeout=60)
    for wrong in ("../x", "/x", ""):
        with pytest.raises(DeviceError, match="not in the transport's folder"):
            transport.push(folder, wrong)
    with pytest.raises(DeviceError, match=r"there is no .*nowhere to push"):
        transport.push(tmp_path / "nowhere", "x")
    with pytest.raises(DeviceError, match="there is no 'nowhere' to pull"):
        transport.pull("nowhere", tmp_path / "back")


def commands(transport: Any, machine: str) -> None:
    """Exit codes, signals, streams; and arguments that a shell would like to read."""
    done = transport.exec(["sh", "-c", "cat; printf 'e\\n' >&2; exit 3"], stdin=b"a\r\n\0\xff", timeout=60)
    assert (done.code, done.stdout, done.stderr) == (3, b"a\r\n\0\xff", b"e\n")
    assert transport.exec(["sh", "-c", "kill -9 $$"], stdin=b"", timeout=60).code == -9
    done = transport.exec(["printf", "<%s>", *NASTY], stdin=b"unread" * 100_000, timeout=60)
    assert done.stdout.decode() == "".join(f"<{one}>" for one in NASTY)
    assert transport.exec(["test", "-e", "hacked"], stdin=b"", timeout=60).code == 1
    big = transport.exec(["head", "-c", "3000000", "/dev/zero"], stdin=b"", timeout=60)
    assert len(big.stdout) == 3_000_000
    found = transport.probe()
    assert found["machine"] == machine and found["cores"] >= 1 and found["memory_bytes"] > 1e8 and found["cpu"]
    assert len(found["load_average"]) == 3 and found["os"]
    assert {"governor", "temperature_c", "on_battery", "battery_percent"} <= set(found)


def workers(transport: Any) -> None:
    """A worker answers line by line, and tells how it ended."""
    echo = ["sh", "-c", 'while read -r line; do echo ">$line"; head -c 200000 /dev/zero >&2; done']
    worker = transport.open(echo)
    assert worker.ask(b"one two", timeout=60) == b">one two\n"
    long = b"x" * 300_000
    assert worker.ask(long + b"\n", timeout=60) == b">" + long + b"\n"
    worker.close()
    worker.close()
    with pytest.raises(DeviceError):
        worker.ask(b"again", timeout=5)
    for script, match in (
        ("read -r x; echo ouch >&2; kill -6 $$", r"signal 6: .*ouch"),
        ("echo no model >&2; exit 1", r"exited with 1: no model"),
    ):
        worker = transport.open(["sh", "-c", script])
        with pytest.raises(DeviceError, match=match):
            worker.ask(b"go", timeout=60)
        worker.close()
    worker = transport.open(["./no-such-program"])
    with pytest.raises(DeviceError, match=r"cannot start ./no-such-program"):
        worker.ask(b"go", timeout=60)
    worker.close()


def time_outs(transport: Any) -> None:
    """What hangs is killed with its children, by exec and by a worker."""
    hang = "sleep 300 & echo $! > child; sleep 300"
    began = time.monotonic()
    with pytest.raises(DeviceError, match="longer than 2 s and was stopped"):
        transport.exec(["sh", "-c", hang], stdin=b"", timeout=2)
    _gone(transport)
    worker = transport.open(["sh", "-c", hang])
    with pytest.raises(DeviceError, match="no answer within 2 s"):
        worker.ask(b"go", timeout=2)
    _gone(transport)
    assert time.monotonic() - began < 40


def _gone(transport: Any) -> None:
    """The child is no more, or dead and not yet collected by process 1."""
    state = "[ -e /proc/$(cat child)/stat ] && [ \"$(cut -d' ' -f3 /proc/$(cat child)/stat)\" != Z ]"
    script = f"for _ in 1 2 3 4 5 6 7 8 9; do {state} || exit 0; sleep 0.2; done; exit 7"
    assert transport.exec(["sh", "-c", script], stdin=b"", timeout=30).code == 0


def programs(transport: Any, here: Here, tmp_path: Path) -> None:
    """Why a program does not start: built for another processor, a library or its loader missing, not there."""

    def broken(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
        transport.push(tmp_path / name, f"bin/{name}")
        return f"./bin/{name}"

    good = here.program.read_bytes()
    other = good[:18] + (8).to_bytes(2, "little") + good[20:]
    foreign = broken("foreign", other)
    with pytest.raises(DeviceError, match=f"built for mips, but the device is {here.machine}. Set the abi"):
        transport.exec([foreign], stdin=b"", timeout=60)
    worker = transport.open([foreign])
    with pytest.raises(DeviceError, match="built for mips"):
        worker.ask(b"go", timeout=60)
    worker.close()
    lost = broken("lost", good.replace(b"libselinux.so.1", b"libselinuX.so.1"))
    with pytest.raises(DeviceError, match=r"cannot start: .*libselinuX.so.1.*Push the library"):
        transport.exec([lost], stdin=b"", timeout=60)
    worker = transport.open([lost])
    with pytest.raises(DeviceError, match=r"libselinuX.so.1"):
        worker.ask(b"go", timeout=60)
    worker.close()
    unloaded = broken("unloaded", good.replace(b"/ld-linux", b"/ld-linuX"))
    with pytest.raises(DeviceError, match=r"loader or interpreter|Could not open .*/ld-linuX"):
        transport.exec([unloaded], stdin=b"", timeout=60)
    with pytest.raises(DeviceError, match=r"cannot start ./bin/none"):
        transport.exec(["./bin/none"], stdin=b"", timeout=60)


def bench(
    device: devices.Device, parents: dict[str, artifact.Artifact], tmp_path: Path, seconds: int = 60
) -> dict[str, Any]:
    """The bench stage on this device alone; its facts."""
    path = tmp_path / "there.yaml"
    path.write_text(yaml.safe_dump(device.model_dump(exclude={"limits", "clusters"})))
    sets = [f"bench.{one}" for one in (*SETTINGS, f"devices=[{path}]", f"timeout_seconds={seconds}")]
    view: Any = recipe.View(
        recipe.parse("name: x\n", overrides=sets), ("bench", "task", "data.max_length", "teacher.model")
    )
    (tmp_path / "out").mkdir(exist_ok=True)
    return stage.run(view, artifact.Inputs(parents=parents), tmp_path / "out")
