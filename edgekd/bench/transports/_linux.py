"""What SSH and ADB have in common: a Linux at the other end of a shell that can also copy files.

``Remote`` is a Transport but for a few methods. It keeps files by their SHA-256 in a cache folder on the device and
links them into the folder of a session, so a file crosses the wire once. Small scripts of POSIX sh do the rest; every
name in them is quoted. Here is also what the files of /proc and /sys say, as functions of their text.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekd.artifact import Facts
from edgekd.bench.transports._contract import Completed
from edgekd.errors import DeviceError

SCRIPT_SECONDS = 60.0  # for the small scripts of this module; they take milliseconds
CLOSE_SECONDS = 10.0  # a device that does not answer is left alone then
TAIL = 400  # characters of stderr that go into an error
KEPT_DAYS = 14  # files of the cache that no session used for longer are removed
BATCH = 50  # files that one script links

# Keys before "=" are single lines; a section lasts from "@name" to the next.
PROBE = r"""
echo "kernel=$(uname -sr)"
echo "machine=$(uname -m)"
echo "cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || nproc 2>/dev/null)"
echo "governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
echo "load=$(cat /proc/loadavg 2>/dev/null)"
for zone in /sys/class/thermal/thermal_zone*; do
  [ -r "$zone/temp" ] && echo "zone=$(cat "$zone/type" 2>/dev/null) $(cat "$zone/temp" 2>/dev/null)"
done
for supply in /sys/class/power_supply/*; do
  [ -r "$supply/type" ] && echo "supply=$(cat "$supply/type")|$(cat "$supply/status" 2>/dev/null)|$(cat "$supply/online" 2>/dev/null)|$(cat "$supply/capacity" 2>/dev/null)"
done
echo @release; cat /etc/os-release 2>/dev/null
echo @cpuinfo; cat /proc/cpuinfo 2>/dev/null
echo @meminfo; cat /proc/meminfo 2>/dev/null
echo @end
true
"""  # noqa: E501

# Parts of ARM's own processors (implementer 0x41), as arch/arm64/include/asm/cputype.h of Linux numbers them.
ARM_CORES = {
    0xC07: "Cortex-A7", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57",
    0xD08: "Cortex-A72", 0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510",
    0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4B: "Cortex-A78C", 0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
}  # fmt: skip

# e_machine of the ELF header (System V ABI), by what uname -m says.
ELF_MACHINES = {3: "i686", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64",
                243: "riscv64", 258: "loongarch64"}  # fmt: skip
RUNS_ALSO = {"x86_64": {"i686"}, "aarch64": {"armv7l"}, "armv8l": {"armv7l"}, "i386": {"i686"}, "ppc64le": {"ppc64"}}

# What the loaders of glibc, musl and Android say when a library is missing or does not fit, and qemu of a loader.
LOADER = re.compile(
    r"error while loading shared libraries|Error loading shared library|CANNOT LINK EXECUTABLE"
    r"|^qemu-\w+: Could not open"
)


# --- what the files of /proc and /sys say ---


def parse(text: str) -> Facts:
    """The output of PROBE as a probe's facts; what could not be read is None."""
    parts = sections(text)
    values: dict[str, list[str]] = {}
    for line in parts[""].splitlines():
        key, _, content = line.partition("=")
        values.setdefault(key, []).append(content)

    def value(key: str) -> str | None:
        return next((found.strip() for found in values.get(key, []) if found.strip()), None)

    cores, load = value("cores"), (value("load") or "").split()
    release = re.search(r'^PRETTY_NAME="?(.*?)"?$', parts.get("release", ""), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", parts.get("meminfo", ""), re.MULTILINE)
    return {
        "os": ", ".join(part for part in (release and release[1], value("kernel")) if part) or None,
        "machine": value("machine"),
        "cpu": cpu_name(parts.get("cpuinfo", "")),
        "cores": int(cores) if cores and cores.isdigit() else None,
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "governor": value("governor"),
        "load_average": [float(one) for one in load[:3]] if len(load) >= 3 else None,
        "temperature_c": temperature_c(values.get("zone", [])),
        **power(values.get("supply", [])),
    }


def sections(text: str) -> dict[str, str]:
    """What stands below each line "@name"; before the first, below the empty name."""
    head, *others = text.split("\n@")
    return {"": head} | {name: content for name, _, content in (part.partition("\n") for part in others)}


def cpu_name(cpuinfo: str) -> str | None:
    """The processor of /proc/cpuinfo; of several kinds (big.LITTLE) each with how many."""
    lines = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in cpuinfo.splitlines())]

    def all_of(*names: str) -> list[str]:
        return [value for key, value in lines if key in names and value]

    found: list[str] = []
    for implementer, part in zip(all_of("CPU implementer"), all_of("CPU part"), strict=False):
        known = ARM_CORES.get(int(part, 16)) if int(implementer, 16) == 0x41 else None
        found.append(known or f"implementer {implementer} part {part}")
    kinds = list(dict.fromkeys(found))
    if any(not kind.startswith("implementer") for kind in kinds):
        return kinds[0] if len(kinds) == 1 else ", ".join(f"{found.count(kind)}x {kind}" for kind in kinds)
    named = all_of("model name", "Hardware", "Model", "uarch", "cpu model")
    return named[0] if named else (kinds[0] if kinds else None)


def temperature_c(zones: Iterable[str]) -> float | None:
    """Degrees Celsius of the hottest processor zone, or of the hottest zone, from lines of "type millidegrees"."""
    found: list[tuple[bool, float]] = []
    for zone in zones:
        kind, _, reading = zone.strip().rpartition(" ")
        if not re.fullmatch(r"-?\d+", reading):
            continue
        degrees = int(reading) / 1000 if abs(int(reading)) > 1000 else float(reading)  # some old kernels: degrees
        if -40 < degrees < 150 and degrees != 0:  # an empty sensor reads 0
            found.append((bool(re.search(r"cpu|soc|pkg|core", kind, re.IGNORECASE)), degrees))
    return max(found)[1] if found else None


def power(supplies: Iterable[str]) -> Facts:
    """``on_battery`` and ``battery_percent``, from lines of "type|status|online|capacity"; None where unknown."""
    percent, discharging, online = None, None, None
    for supply in supplies:
        kind, status, on, capacity, *_ = [*supply.strip().split("|"), "", "", ""]
        if kind == "Battery":
            discharging = bool(discharging) or status == "Discharging"
            percent = int(capacity) if capacity.isdigit() else percent
        elif on.isdigit():
            online = bool(online) or on != "0"
    on_battery = discharging if discharging is not None else (None if online is None else not online)
    return {"on_battery": on_battery, "battery_percent": percent}


def elf_machine(head: bytes) -> str | None:
    """What a program was built for, from its first 20 bytes; None where it is no ELF file."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return ELF_MACHINES.get(number, f"ELF machine {number}")


# --- a device behind a shell ---


@dataclass(frozen=True)
class _Blob:
    """A file as the cache knows it; an executable one is another blob, because links share their mode."""

    path: Path
    name: str
    size: int
    executable: bool


class Remote(ABC):
    """Push, exec, pull and close over ``_run``, ``_sh``, ``_upload`` and ``_download``."""

    def __init__(self, name: str, base: str) -> None:
        """``base``: an absolute folder of the device that this user may write to and start programs in."""
        self._name = name
        self._cache = f"{base}/cache"
        self._root = f"{base}/run-{secrets.token_hex(8)}"
        self._abi = ""
        self._count = 0
        self._running: set[int] = set()  # commands whose process group may be alive
        self._closed = False

    @abstractmethod
    def _sh(self, script: str, *, timeout: float = SCRIPT_SECONDS) -> Completed:
        """Run a script by the device's sh, given on its stdin."""

    @abstractmethod
    def _run(self, argv: Sequence[str], stdin: bytes, timeout: float) -> Completed:
        """Run a command in ``_root``; its process group is gone when this raises."""

    @abstractmethod
    def _upload(self, src: Path, dst: str) -> None:
        """Copy a file to an absolute path of the device."""

    @abstractmethod
    def _download(self, src: str, dst: Path) -> None:
        """Copy a file of the device, which exists."""

    @abstractmethod
    def _disconnect(self) -> None:
        """End the connection; may raise DeviceError."""

    def _prepare(self) -> None:
        """Make the folders and learn what the device is; the last act of connecting."""
        cache, root = shlex.quote(self._cache), shlex.quote(self._root)
        done = self._sh(f"mkdir -p {cache} {root} && uname -m\n")
        if done.code != 0:
            raise self._error(f"cannot make the folder {self._root}: {said(done.stderr)}", **space(done.stderr))
        self._abi = done.stdout.decode(errors="replace").strip()

    def push(self, src: Path, dst: str) -> None:
        """Send what the device does not have by its digest, and link it to ``dst``."""
        if not src.exists():
            raise self._error(f"there is no {src} to push")
        wanted: dict[str, _Blob] = {}
        if src.is_dir():
            for path in sorted(src.rglob("*")):
                if path.is_file():
                    wanted[self._inside(f"{dst}/{path.relative_to(src).as_posix()}")] = _blob(path)
        else:
            wanted[self._inside(dst)] = _blob(src)
        blobs = {blob.name: blob for blob in wanted.values()}
        have = self._cached(list(blobs))
        script = []
        for name, blob in blobs.items():
            if have.get(name) != blob.size:
                partial = f"{self._cache}/{name}.{secrets.token_hex(4)}"
                self._send(blob, partial)
                mode = "555" if blob.executable else "444"
                script.append(f"chmod {mode} {shlex.quote(partial)} && mv -f {shlex.quote(partial)} {self._at(blob)}")
        script += [self._link(blob, place) for place, blob in wanted.items()]
        for start in range(0, len(script), BATCH):
            done = self._sh("set -e\n" + "\n".join(script[start : start + BATCH]) + "\n")
            if done.code != 0:
                raise self._error(f"cannot put {dst} in place: {said(done.stderr)}", **space(done.stderr))
        if src.is_dir() and not wanted:
            self._sh(f"mkdir -p {shlex.quote(self._inside(dst))}\n")

    def exec(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """Run to the end; raises DeviceError when it cannot start, time is up or the device is gone."""
        done = self._run(argv, stdin, timeout)
        if done.code > 0 and not done.stdout:
            error = self._not_started(argv, done.code, done.stderr.decode(errors="replace"))
            if error is not None:
                raise error
        return done

    def pull(self, src: str, dst: Path) -> None:
        """Copy a file out of this session's folder."""
        path = self._inside(src)
        if self._sh(f"test -f {shlex.quote(path)}\n").code != 0:
            raise self._error(f"there is no '{src}' to pull")
        self._download(path, dst)

    def close(self) -> None:
        """Kill what still runs, remove the folder and files that were not used for long, disconnect."""
        if self._closed:
            return
        self._closed = True
        kills = "".join(self._kill_script(number) for number in sorted(self._running))
        cache = shlex.quote(self._cache)
        old = f"find {cache} -type f -mtime +{KEPT_DAYS} -exec rm -f {{}} + 2>/dev/null\n"
        with suppress(DeviceError):
            self._sh(f"{kills}rm -rf {shlex.quote(self._root)}\n{old}true\n", timeout=CLOSE_SECONDS)
        with suppress(DeviceError):
            self._disconnect()

    # --- parts ---

    def _error(self, what: str, todo: str = "") -> DeviceError:
        return DeviceError(what, where=self._name, todo=todo)

    def _inside(self, name: str) -> str:
        """The absolute path of a name in this session's folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise self._error(f"'{name}' is not in the transport's folder")
        return f"{self._root}/{path}"

    def _at(self, blob: _Blob) -> str:
        return shlex.quote(f"{self._cache}/{blob.name}")

    def _cached(self, names: Sequence[str]) -> dict[str, int]:
        """Bytes of those that the device has."""
        found: dict[str, int] = {}
        for start in range(0, len(names), BATCH):
            some = " ".join(names[start : start + BATCH])  # hexadecimal digits
            done = self._sh(
                f"cd {shlex.quote(self._cache)} || exit 1\n"
                f'for name in {some}; do [ -f "$name" ] && echo "$name $(wc -c < "$name")"; done\ntrue\n'
            )
            pairs = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
            found |= {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
        return found

    def _link(self, blob: _Blob, place: str) -> str:
        """A hard link, else a symbolic one; but not of a program, which looks for its libraries where it lies."""
        source, target = self._at(blob), shlex.quote(place)
        folder = shlex.quote(str(PurePosixPath(place).parent))
        other = (
            f"cp -p {source} {target}"
            if blob.executable
            else f"ln -s {source} {target} 2>/dev/null || cp {source} {target}"
        )
        return f"mkdir -p {folder}; rm -rf {target}; touch {source}; ln {source} {target} 2>/dev/null || {other}"

    def _send(self, blob: _Blob, partial: str) -> None:
        """Upload one file; a device that is full is told from other failures by what is free afterwards."""
        try:
            self._upload(blob.path, partial)
        except DeviceError:
            free = None
            with suppress(DeviceError):
                done = self._sh(f"rm -f {shlex.quote(partial)}\ndf -Pk {shlex.quote(self._cache)}\n")
                free = _free_bytes(done.stdout.decode(errors="replace"))
            if free is not None and free < blob.size:
                what = (
                    f"no space left for {blob.path.name}: it has {blob.size / 1e6:.1f} MB, free are {free / 1e6:.1f} MB"
                )
                raise self._error(what, todo=f"Free space on the device, or empty {self._cache} on it.") from None
            raise

    def _start_script(self, argv: Sequence[str], number: int) -> str:
        """Into the session's folder, and note the process group; the command itself comes after it."""
        if not argv:
            raise self._error("there is no command to run")
        return f"cd {shlex.quote(self._root)} && echo $$ > .pid-{number} || exit 126; "

    def _kill_script(self, number: int) -> str:
        file = shlex.quote(f"{self._root}/.pid-{number}")
        return f'p=$(cat {file} 2>/dev/null) && {{ kill -9 "-$p" || kill -9 "$p"; }} 2>/dev/null\n'

    def _kill(self, number: int) -> None:
        """End the process group of a command that may still run; an unreachable device is left alone."""
        self._running.discard(number)
        with suppress(DeviceError):
            self._sh(self._kill_script(number), timeout=CLOSE_SECONDS)

    def _next(self) -> int:
        self._count += 1
        self._running.add(self._count)
        return self._count

    def _not_started(self, argv: Sequence[str], code: int, stderr: str) -> DeviceError | None:
        """Why the program never ran: another processor's, a missing library, no such file; None where it did run."""
        missing = next((line.strip() for line in stderr.splitlines() if LOADER.search(line)), None)
        if missing:
            return self._error(f"{argv[0]} cannot start: {missing}", todo="Push the library beside the program.")
        if code not in (2, 126, 127):  # of a shell that was given a program it cannot start
            return None
        built, exists = None, False
        if "/" in argv[0]:
            with suppress(DeviceError):
                done = self._sh(
                    f"cd {shlex.quote(self._root)}; head -c 20 {shlex.quote(argv[0])} 2>/dev/null | od -An -v -tx1\n"
                )
                digits = done.stdout.decode(errors="replace").split()
                built, exists = elf_machine(bytes(int(one, 16) for one in digits)), bool(digits)
        if built and built != self._abi and built not in RUNS_ALSO.get(self._abi, set()):
            return self._error(
                f"{argv[0]} is built for {built}, but the device is {self._abi}",
                todo=f"Set the abi of its profile to {self._abi}, and build the runner for that.",
            )
        if code == 2:
            return None
        if code == 127 and exists:
            return self._error(
                f"cannot start {argv[0]}: it exists, but the loader or interpreter that it names does not",
                todo="Build it for the device's C library.",
            )
        return self._error(f"cannot start {argv[0]} ({said(stderr.encode()) or 'not found on the device'})")

    def _ended(self, argv: Sequence[str], code: int, stderr: bytes) -> DeviceError:
        """A worker that ended unasked."""
        text = stderr.decode(errors="replace")
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        error = self._not_started(argv, code, text) if code > 0 else None
        return error or self._error(f"the runner {how}: {said(stderr) or '(it said nothing)'}")


def said(stderr: bytes) -> str:
    """The end of what a process wrote to stderr, on one line."""
    return " | ".join(stderr.decode(errors="replace").split("\n"))[-TAIL:].strip(" |")


def space(stderr: bytes) -> dict[str, str]:
    return {"todo": "Free space on the device."} if b"No space left" in stderr else {}


def _free_bytes(df: str) -> int | None:
    """Bytes that ``df -Pk`` calls available."""
    words = df.strip().splitlines()[-1].split() if df.strip() else []
    return int(words[3]) * 1024 if len(words) >= 6 and words[3].isdigit() else None


def _blob(path: Path) -> _Blob:
    state = path.stat()
    executable = bool(state.st_mode & 0o111)
    digest = _digest(str(path.resolve()), state.st_size, state.st_mtime_ns)
    return _Blob(path, digest + "-x" * executable, state.st_size, executable)


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file's bytes; size and time only tell whether it is still the same file."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
