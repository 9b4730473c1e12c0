"""An Android device, or anything else that runs adbd, through the adb command.

Programs and files go to /data/local/tmp, where the shell user of every Android may start programs; no app is installed.
adb keeps a server of its own running; it is not stopped here. The device needs Android 7 or newer, for the exit codes
and the separate stderr of ``shell_v2``.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from pydantic import Field

from edgekd.artifact import Facts
from edgekd.bench import devices
from edgekd.bench.transports import _linux, local
from edgekd.bench.transports._contract import Completed
from edgekd.errors import DeviceError
from edgekd.recipe import Section

BASE = "/data/local/tmp/edgekd"
CONNECT_SECONDS = 15.0  # for a device to come online
COPY_SECONDS = 600.0  # for one file, and adb's own commands
WARM_C = 38.0  # a battery warmer than this has been working or charging
LOW_PERCENT = 20  # below it phones begin to save

# After PROBE; the same form. dumpsys is Android's; each section is left empty where it is not there.
ANDROID_PROBE = r"""
echo "@props"
for key in ro.product.manufacturer ro.product.model ro.product.cpu.abi ro.build.version.release ro.build.version.sdk ro.soc.model; do
  echo "$key=$(getprop $key 2>/dev/null)"
done
echo "@battery"; dumpsys battery 2>/dev/null
echo "@thermal"; dumpsys thermalservice 2>/dev/null
echo "@power"; dumpsys power 2>/dev/null | grep -E '^ *(mWakefulness=|Display Power)'
echo "@airplane"; settings get global airplane_mode_on 2>/dev/null
echo "@end"
true
"""  # noqa: E501


class Options(Section):
    """Which device of which adb server."""

    serial: str | None = Field(None, description="As `adb devices` shows it; null: the only one there is.")
    connect: str | None = Field(
        None, pattern=r"^[^-\s][^\s]*$", description="host:port of an adbd on the network, for `adb connect`."
    )
    server_port: int | None = Field(None, ge=1, le=65535, description="Of the adb server; null: adb's default.")
    adb: Path = Field(Path("adb"), description="The adb program.")


def connect(device: devices.Device) -> Adb:
    """Find the device, make a folder on it; raises DeviceError that says which of it failed."""
    options = devices.options(device, Options)
    client = _Client(device.name, options)
    client.serial = client.reach(options)
    made = Adb(device.name, client)
    try:
        if "shell_v2" not in client.call("features").stdout.decode(errors="replace").split():
            raise DeviceError("its adbd gives no exit codes", where=device.name, todo="Android 7 or newer is needed.")
        made._prepare()
    except BaseException:
        made.close()
        raise
    return made


class _Client:
    """The adb program, called with lists of arguments."""

    def __init__(self, name: str, options: Options) -> None:
        self._name = name
        self._adb = [str(options.adb.expanduser())]
        if options.server_port is not None:
            self._adb += ["-P", str(options.server_port)]
        self.serial: str | None = None

    def argv(self, *arguments: str) -> list[str]:
        return [*self._adb, *(["-s", self.serial] if self.serial else []), *arguments]

    def call(self, *arguments: str, stdin: bytes = b"", timeout: float = COPY_SECONDS) -> Completed:
        """Run adb to its end; raises DeviceError without adb, and TimeoutError when time is up."""
        try:
            # a session of its own, for the server that the first call starts and that inherits it
            done = subprocess.run(
                self.argv(*arguments), input=stdin, capture_output=True, timeout=timeout, start_new_session=True
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        except OSError as problem:
            todo = "Install Android's platform tools (Debian: adb), or name the program in options.adb."
            raise self.error(f"cannot start {self._adb[0]} ({problem.strerror})", todo) from None
        return Completed(done.returncode, done.stdout, done.stderr)

    def error(self, what: str, todo: str = "") -> DeviceError:
        return DeviceError(what, where=self._name, todo=todo)

    def reach(self, options: Options) -> str:
        """The serial of the device; raises DeviceError when it is not there, not ready or not the only one."""
        try:
            self._server()
            if options.connect is not None:
                self._connect(options.connect)
            return self._ready(options.connect if options.serial is None else options.serial)
        except TimeoutError:
            raise self.error("the adb server does not answer", "Restart it: adb kill-server.") from None

    def _server(self) -> None:
        done = self.call("start-server", timeout=CONNECT_SECONDS)
        if done.code != 0:
            raise self.error(f"the adb server does not start: {_linux.said(done.stderr + done.stdout)}")

    def _connect(self, place: str) -> None:
        """``adb connect``; a connection that went stale is dropped first."""
        if self.states().get(place, "device") != "device":
            self.call("disconnect", place, timeout=CONNECT_SECONDS)
        try:
            said = self.call("connect", place, timeout=CONNECT_SECONDS).stdout.decode(errors="replace").strip()
        except TimeoutError:
            said = f"no answer within {CONNECT_SECONDS:.0f} s"
        if not said.startswith(("connected to", "already connected")):
            todo = "Is it on, in this network, and listening (adb tcpip 5555)?"
            raise self.error(f"cannot connect to {place} ({said.removeprefix('failed to connect to ')})", todo)

    def _ready(self, serial: str | None) -> str:
        """Wait a little for the state ``device``."""
        began, found = time.monotonic(), self.states()
        while time.monotonic() - began < CONNECT_SECONDS and found.get(serial or "") in ("offline", "authorizing"):
            time.sleep(0.2)
            found = self.states()
        listed = ", ".join(f"{one} ({state})" for one, state in found.items()) or "none"
        if serial is None:
            if len(found) != 1:
                what = "no device is attached" if not found else f"several devices are attached: {listed}"
                todo = "Attach it, and allow USB debugging." if not found else "Name one in options.serial."
                raise self.error(what, todo)
            serial = next(iter(found))
        state = found.get(serial)
        if state == "device":
            return serial
        known = {
            None: f"Attached: {listed}.",
            "unauthorized": "Unlock it and allow USB debugging for this computer.",
            "offline": "Attach it again, or restart adb: adb kill-server.",
        }
        todo = known.get(state, "Its USB device may belong to another user: see Android's udev rules.")
        raise self.error(f"the device {serial} is {state or 'not attached'}", todo)

    def states(self) -> dict[str, str]:
        """State by serial."""
        lines = self.call("devices", timeout=CONNECT_SECONDS).stdout.decode(errors="replace").splitlines()
        return {serial: state for serial, tab, state in (line.partition("\t") for line in lines) if tab}


class Adb(_linux.Remote):
    """The Transport through adb; see ``_contract.py``."""

    def __init__(self, name: str, client: _Client) -> None:
        super().__init__(name, BASE)
        self._client = client
        self._mark = f"edgekd-{secrets.token_hex(8)}"

    def probe(self) -> Facts:
        """What /proc, /sys and, on Android, its services say now; and ``advice`` for a better measurement."""
        text = self._sh(_linux.PROBE.removesuffix("true\n") + ANDROID_PROBE).stdout.decode(errors="replace")
        return probed(text)

    def open(self, argv: Sequence[str]) -> AdbWorker:
        """Start a command that stays."""
        number = self._next()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - the worker closes it
        process = subprocess.Popen(
            self._client.argv(*self._shell(argv, number)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        return AdbWorker(self, argv, number, process, errors)

    def _shell(self, argv: Sequence[str], number: int) -> list[str]:
        """adb's arguments: no terminal, one string for the device's shell, which says at last how it ended.

        adb's own exit code cannot tell a command that failed from a device that went away.
        """
        script = self._start_script(argv, number) + shlex.join(argv)
        return ["shell", "-T", f"{script}; code=$?; echo {self._mark} $code >&2; exit $code"]

    def _run(self, argv: Sequence[str], stdin: bytes, timeout: float) -> Completed:
        number = self._next()
        try:
            done = self._client.call(*self._shell(argv, number), stdin=stdin, timeout=timeout)
        except TimeoutError:
            self._kill(number)
            raise self._error(f"took longer than {timeout:.0f} s and was stopped") from None
        code, stderr = self._outcome(done.code, done.stderr)
        self._running.discard(number)
        return Completed(code, done.stdout, stderr)

    def _outcome(self, code: int, stderr: bytes) -> tuple[int, bytes]:
        """Exit code (negative: a signal) and stderr of a command; raises DeviceError when it was cut off."""
        said, mark, number = stderr.rpartition(f"{self._mark} ".encode())
        if mark:
            code = int(number)
            return (128 - code if 128 < code < 160 else code), said
        if code == 126:  # the start of the script, before the command
            raise self._error(f"cannot start in {self._root}: {_linux.said(stderr)}", **_linux.space(stderr))
        raise self._lost(stderr)

    def _lost(self, stderr: bytes = b"") -> DeviceError:
        state = "not answering"
        with contextlib.suppress(TimeoutError, DeviceError):
            state = self._client.states().get(self._client.serial or "", "gone")
        said = _linux.said(stderr)
        what = f"the connection broke{f' ({said})' if said else ''}; the device is now {state}"
        return self._error(what, todo="Is it still on, and its cable or network steady?")

    def _sh(self, script: str, *, timeout: float = _linux.SCRIPT_SECONDS) -> Completed:
        whole = f"(\n{script}\n) < /dev/null; code=$?; echo {self._mark} $code >&2; exit $code\n"
        try:
            done = self._client.call("shell", "-T", "sh", stdin=whole.encode(), timeout=timeout)
        except TimeoutError:
            raise self._error(f"does not answer within {timeout:.0f} s", todo="Is it still on?") from None
        said, mark, code = done.stderr.rpartition(f"{self._mark} ".encode())
        if not mark:
            raise self._lost(done.stderr)
        return Completed(int(code), done.stdout, said)

    def _upload(self, src: Path, dst: str) -> None:
        self._copy("push", str(src), dst)

    def _download(self, src: str, dst: Path) -> None:
        self._copy("pull", src, str(dst))

    def _copy(self, direction: str, src: str, dst: str) -> None:
        try:
            done = self._client.call(direction, "--", src, dst)
        except TimeoutError:
            raise self._error(f"adb {direction} took longer than {COPY_SECONDS:.0f} s and was stopped") from None
        if done.code != 0:
            with contextlib.suppress(TimeoutError):
                if self._client.states().get(self._client.serial or "") != "device":
                    raise self._lost(done.stderr)
            raise self._error(f"adb {direction} failed: {_linux.said(done.stderr or done.stdout)}")

    def _disconnect(self) -> None:
        """The adb server stays, and with it the connection."""


class AdbWorker(local.LocalWorker):
    """``adb shell`` with pipes, in front of a process on the device; see ``_contract.Worker``."""

    def __init__(
        self, transport: Adb, argv: Sequence[str], number: int, process: subprocess.Popen[bytes], errors: IO[bytes]
    ) -> None:
        self._transport, self._argv, self._number = transport, argv, number
        super().__init__(transport._name, process, errors)

    def _explain(self, code: int, stderr: bytes) -> DeviceError:
        try:
            code, stderr = self._transport._outcome(code, stderr)
        except DeviceError as lost:
            return lost
        return self._transport._ended(self._argv, code, stderr)

    def close(self) -> None:
        """Kill the process group on the device, and adb."""
        if self._number in self._transport._running:
            self._transport._kill(self._number)
        super().close()


# --- what Android says ---


def probed(text: str) -> Facts:
    """The output of PROBE and ANDROID_PROBE as a probe's facts; what could not be read is None."""
    sections, found = _linux.sections(text), _linux.parse(text)
    lines = (line.partition("=") for line in sections.get("props", "").splitlines())
    props: dict[str, str | None] = {key: value.strip() or None for key, _, value in lines}
    release = props.get("ro.build.version.release")
    maker = " ".join(part for key in ("manufacturer", "model") if (part := props.get(f"ro.product.{key}")))
    known = battery(sections.get("battery", ""))
    thermal_status, cpu_c = thermal(sections.get("thermal", ""))
    temperature = next(
        (c for c in (found["temperature_c"], cpu_c, known["battery_temperature_c"]) if c is not None), None
    )
    sdk = props.get("ro.build.version.sdk")
    facts: Facts = {
        **found,
        "os": f"Android {release}, {found['os']}" if release else found["os"],
        "cpu": props.get("ro.soc.model") or found["cpu"],
        "model": maker or None,
        "abi": props.get("ro.product.cpu.abi"),
        "sdk": int(sdk) if sdk and sdk.isdigit() else None,
        **{key: value if value is not None else found.get(key) for key, value in known.items()},
        "temperature_c": temperature,
        "thermal_status": thermal_status,
        "screen_on": screen_on(sections.get("power", "")),
        "airplane_mode": {"0": False, "1": True}.get(sections.get("airplane", "").strip()),
    }
    return {**facts, "advice": advice(facts)}


def battery(dumpsys: str) -> Facts:
    """``dumpsys battery``: percent, tenths of a degree Celsius, what it is plugged into, BatteryManager's status."""
    lines = (line.partition(":") for line in dumpsys.splitlines())
    values = {key.strip(): value.strip() for key, _, value in lines}

    def number(key: str) -> int | None:
        return int(values[key]) if re.fullmatch(r"-?\d+", values.get(key, "")) else None

    level, tenths = number("level"), number("temperature")
    plugs = [values[key] == "true" for key in values if key.endswith(" powered")]
    status = {2: "charging", 3: "discharging", 4: "not charging", 5: "full"}.get(number("status") or 0)
    return {
        "battery_percent": None if level is None else round(100 * level / (number("scale") or 100)),
        "battery_temperature_c": None if tenths is None else tenths / 10,
        "battery_status": status,
        "on_battery": not any(plugs) if plugs else None,
    }


def thermal(dumpsys: str) -> tuple[int | None, float | None]:
    """``dumpsys thermalservice``: PowerManager's status, 0 none to 6 shutdown; hottest processor, degrees Celsius."""
    status = re.search(r"Thermal Status: (\d+)", dumpsys)
    cached, _, now = dumpsys.partition("Current temperatures from HAL")
    processors = [
        float(value)
        for value in re.findall(
            r"Temperature\{mValue=(-?[\d.]+), mType=0,", now.partition("Current cooling")[0] or cached
        )
    ]
    return int(status[1]) if status else None, max(processors, default=None)


def screen_on(dumpsys: str) -> bool | None:
    """``dumpsys power``: whether the display is lit."""
    display = re.search(r"Display Power: state=(\w+)", dumpsys)
    awake = re.search(r"mWakefulness=(\w+)", dumpsys)
    if display:
        return display[1] != "OFF"
    return awake[1] == "Awake" if awake else None


def advice(facts: Mapping[str, object]) -> list[str]:
    """What a person can do for a steadier measurement, from what was seen; nothing about what is not known."""
    found = []
    temperature, percent = facts.get("battery_temperature_c"), facts.get("battery_percent")
    status, plugged = facts.get("thermal_status"), facts.get("on_battery") is False
    warm = isinstance(temperature, float) and temperature > WARM_C
    if isinstance(status, int) and status > 0:
        found.append(f"Let it cool down: Android throttles already (thermal status {status} of 6).")
    elif warm:
        found.append(f"Let it cool down: the battery has {temperature:.1f} °C.")
    if isinstance(percent, int) and percent < LOW_PERCENT and not plugged:
        found.append(f"Plug it in: at {percent} % phones begin to save power.")
    if plugged and facts.get("battery_status") == "charging" and warm:
        found.append("Unplug it when it is charged, and use adb over the network: charging warms it.")
    if facts.get("airplane_mode") is False:
        found.append("Switch on airplane mode: radios and synchronisation take processor time.")
    if facts.get("screen_on") is True:
        found.append("Switch off the screen: drawing it takes processor time and warms the device.")
    if facts.get("governor") == "powersave":
        found.append("Leave power saving: the processor's governor is powersave.")
    return found
