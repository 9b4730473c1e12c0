"""The ADB transport against a stand-in for the adb program; the real adbd is in test_arm_board.py.

The stand-in obeys adb's arguments on this machine: ``shell`` is a shell here, ``push`` copies. So whatever the
transport sends is carried out, quoting and all.
"""

from __future__ import annotations

import platform
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _wire
import pytest

from edgekd.bench.transports import _linux, adb
from edgekd.errors import BadInput, DeviceError

ADB = r"""#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
serial=""
while :; do
  case $1 in
    -P) shift 2 ;;
    -s) serial=$2; shift 2 ;;
    *) break ;;
  esac
done
state() { while read -r line; do case $line in "$serial	"*) echo "${line#*	}" ;; esac; done < "$here/devices"; }
[ -z "$serial" ] || [ "$1" = devices ] || [ "$(state)" = device ] || { echo "adb: device offline" >&2; exit 1; }
case $1 in
  start-server) ;;
  devices) echo "List of devices attached"; cat "$here/devices"; echo ;;
  features) cat "$here/features" ;;
  connect) cat "$here/connect" ;;
  disconnect) echo gone ;;
  shell) [ "$2" = -T ] || exit 9; exec setsid -w sh -c "$3" ;;
  push|pull) [ "$2" = -- ] || exit 9; cp "$3" "$4" 2>&1 || { cat "$here/full" >&2; exit 1; } ;;
  *) echo "adb: unknown command $1" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("setsid") is None:
        pytest.skip("the stand-in needs setsid")
    folder = tmp_path / "fake"
    (folder / "device").mkdir(parents=True)
    (folder / "adb").write_text(ADB)
    (folder / "adb").chmod(0o755)
    (folder / "devices").write_text("ABC123\tdevice\n")
    (folder / "features").write_text("shell_v2\ncmd\n")
    (folder / "connect").write_text("connected to 10.0.0.1:5555\n")
    (folder / "full").write_text("adb: error\n")
    monkeypatch.setattr(adb, "BASE", str(folder / "device"))
    monkeypatch.setattr(adb, "CONNECT_SECONDS", 1.0)
    return folder


def connected(fake: Path, **options: Any) -> adb.Adb:
    return adb.connect(_wire.profile("adb", **{"adb": fake / "adb", **options}))


@pytest.fixture
def transport(fake: Path) -> Iterator[adb.Adb]:
    made = connected(fake)
    yield made
    made.close()
    made.close()
    assert not list((fake / "device").glob("run-*"))


def test_files(transport: adb.Adb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _wire.files(transport, tmp_path, monkeypatch)


def test_commands_and_probe(transport: adb.Adb) -> None:
    _wire.commands(transport, platform.machine())
    found = transport.probe()
    assert {found[name] for name in ("abi", "sdk", "screen_on", "thermal_status", "battery_temperature_c")} == {None}
    assert isinstance(found["advice"], list)


def test_workers(transport: adb.Adb) -> None:
    _wire.workers(transport)


def test_time_outs(transport: adb.Adb) -> None:
    _wire.time_outs(transport)


def test_programs_that_do_not_start(transport: adb.Adb, tmp_path: Path) -> None:
    program = Path("/bin/ls")
    if platform.system() != "Linux" or b"libselinux.so.1" not in program.read_bytes():
        pytest.skip("no program here to break: /bin/ls does not use libselinux.so.1")
    _wire.programs(transport, _wire.Here(program, platform.machine()), tmp_path)


def test_the_device_is_the_only_one_or_named(fake: Path) -> None:
    (fake / "devices").write_text("ABC123\tdevice\n10.0.0.1:5555\tdevice\nXYZ\tunauthorized\n")
    with pytest.raises(DeviceError, match=r"several .*ABC123 \(device\), 10.0.0.1:5555 .*XYZ .*options\.serial"):
        connected(fake)
    connected(fake, serial="ABC123").close()
    connected(fake, connect="10.0.0.1:5555", server_port=5099).close()
    calls = (fake / "calls").read_text()
    assert "-P 5099 connect 10.0.0.1:5555" in calls and "-s ABC123 shell -T" in calls


@pytest.mark.parametrize(
    ("listed", "options", "message"),
    [
        ("", {}, "no device is attached"),
        ("ABC\tunauthorized\n", {}, "ABC is unauthorized. Unlock it"),
        ("ABC\toffline\n", {}, "ABC is offline"),
        ("ABC\tno permissions\n", {}, "no permissions.* udev"),
        ("ABC\tdevice\n", {"serial": "DEF"}, r"DEF is not attached. Attached: ABC \(device\)"),
    ],
)
def test_a_device_that_is_not_ready(fake: Path, listed: str, options: dict[str, str], message: str) -> None:
    (fake / "devices").write_text(listed)
    with pytest.raises(DeviceError, match=message):
        connected(fake, **options)


def test_what_cannot_be_reached_is_told(fake: Path) -> None:
    (fake / "connect").write_text("failed to connect to '10.0.0.1:5555': Connection refused\n")
    with pytest.raises(DeviceError, match=r"cannot connect to 10.0.0.1:5555 .*refused.*adb tcpip"):
        connected(fake, connect="10.0.0.1:5555")
    (fake / "features").write_text("cmd\n")
    with pytest.raises(DeviceError, match="Android 7"):
        connected(fake)
    with pytest.raises(DeviceError, match=r"cannot start .*nowhere .*platform tools"):
        connected(fake, adb=fake / "nowhere")


def test_a_device_that_goes_away(transport: adb.Adb, fake: Path, tmp_path: Path) -> None:
    worker = transport.open(["cat"])
    assert worker.ask(b"one", timeout=60) == b"one\n"
    (fake / "devices").write_text("ABC123\toffline\n")
    (tmp_path / "file").write_text("x")
    for call in (
        lambda: transport.exec(["true"], stdin=b"", timeout=60),
        lambda: transport.push(tmp_path / "file", "file"),
        lambda: transport.pull("file", tmp_path / "back"),
        transport.probe,
    ):
        with pytest.raises(DeviceError, match=r"the connection broke.*the device is now offline"):
            call()
    worker.close()
    (fake / "devices").write_text("ABC123\tdevice\n")


def test_a_disk_that_is_full(transport: adb.Adb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(bytes(5_000_000))
    monkeypatch.setattr(transport, "_upload", lambda src, dst: transport._copy("push", "/nowhere", dst))
    with pytest.raises(DeviceError, match="adb push failed"):
        transport.push(tmp_path / "big", "big")
    monkeypatch.setattr(_linux, "_free_bytes", lambda df: 1_000_000)
    with pytest.raises(DeviceError, match=r"no space left for big: it has 5.0 MB, free are 1.0 MB"):
        transport.push(tmp_path / "big", "big")


@pytest.mark.parametrize("wrong", [{"connect": "-x"}, {"server_port": 0}, {"port": 1}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=rf"options\.{next(iter(wrong))}"):
        adb.connect(_wire.profile("adb", **wrong))


# --- what Android says: the forms of AOSP's dumpsys ---

BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: {usb}
  Wireless powered: false
  Max charging current: 0
  status: {status}
  health: 2
  present: true
  level: {level}
  scale: 100
  voltage: 4123
  temperature: {tenths}
  technology: Li-ion
"""
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
Thermal Status: {status}
Cached temperatures:
 Temperature{{mValue=99.0, mType=0, mName=CPU0, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
 Temperature{{mValue=45.5, mType=0, mName=CPU0, mStatus=0}}
 Temperature{{mValue=47.25, mType=0, mName=CPU1, mStatus=0}}
 Temperature{{mValue=60.0, mType=1, mName=GPU, mStatus=0}}
Current cooling devices from HAL:
 CoolingDevice{{mValue=0, mType=2, mName=fan}}
"""


def android(usb: str = "true", status: int = 2, level: int = 55, tenths: int = 391, heat: int = 0) -> str:
    """The probe's output on a phone whose thermal zones may not be read."""
    return "\n".join(
        (
            "kernel=Linux 5.15.1",
            "machine=aarch64",
            "cores=8",
            "governor=schedutil",
            "load=3.10 2.90 2.70 2/3000 999",
            "@release",
            "@cpuinfo\nCPU implementer\t: 0x41\nCPU part\t: 0xd46",
            "@meminfo\nMemTotal:        7800000 kB",
            "@end",
            "@props\nro.product.manufacturer=Maker\nro.product.model=Phone 1\nro.product.cpu.abi=arm64-v8a",
            "ro.build.version.release=14\nro.build.version.sdk=34\nro.soc.model=",
            "@battery",
            BATTERY.format(usb=usb, status=status, level=level, tenths=tenths).rstrip(),
            "@thermal",
            THERMAL.format(status=heat).rstrip(),
            "@power\n  mWakefulness=Awake\nDisplay Power: state=ON",
            "@airplane\n0",
            "@end\n",
        )
    )


def test_a_phone_is_read() -> None:
    found = adb.probed(android())
    advice = found.pop("advice")
    assert found == {
        "os": "Android 14, Linux 5.15.1",
        "machine": "aarch64",
        "cpu": "Cortex-A510",
        "cores": 8,
        "memory_bytes": 7_800_000 * 1024,
        "governor": "schedutil",
        "load_average": [3.1, 2.9, 2.7],
        "temperature_c": 47.25,
        "on_battery": False,
        "battery_percent": 55,
        "battery_temperature_c": 39.1,
        "battery_status": "charging",
        "model": "Maker Phone 1",
        "abi": "arm64-v8a",
        "sdk": 34,
        "thermal_status": 0,
        "screen_on": True,
        "airplane_mode": False,
    }
    assert [one.split(":")[0] for one in advice] == [
        "Let it cool down",
        "Unplug it when it is charged, and use adb over the network",
        "Switch on airplane mode",
        "Switch off the screen",
    ]


def test_advice_follows_what_was_seen() -> None:
    calm = {"battery_temperature_c": 25.0, "battery_percent": 80, "on_battery": True, "thermal_status": 0}
    assert adb.advice({**calm, "airplane_mode": True, "screen_on": False, "governor": "schedutil"}) == []
    assert adb.advice({}) == []
    assert adb.advice({**calm, "battery_percent": 9}) == ["Plug it in: at 9 % phones begin to save power."]
    assert adb.advice({**calm, "thermal_status": 3})[0].endswith("(thermal status 3 of 6).")
    assert "powersave" in adb.advice({"governor": "powersave"})[0]
    assert adb.probed(android(usb="false", status=3))["on_battery"] is True
    assert adb.screen_on("mWakefulness=Asleep") is False and adb.screen_on("Display Power: state=OFF") is False
    assert adb.thermal("") == (None, None)


def test_the_stand_in_is_a_program(fake: Path) -> None:
    assert (fake / "adb").stat().st_mode & stat.S_IXUSR
