"""A device over SSH: a board, a phone with a Linux userland, another computer.

Needs ``pip install 'edgekd[ssh]'`` here, and there an SSH server with SFTP, a POSIX login shell and a home folder that
programs may be started from. One connection carries everything. The server's key must be in ``known_hosts``: there is
no way to leave that out, and none to log in by password.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import shlex
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from edgekd.artifact import Facts
from edgekd.bench import devices
from edgekd.bench.transports import _linux
from edgekd.bench.transports._contract import Completed
from edgekd.errors import DeviceError
from edgekd.recipe import Section

ALIVE_SECONDS = 10.0  # after so long a silence the server is asked whether it is there, three times
GRACE = 5.0  # seconds beyond a time-out in which the event loop must have noticed it

T = TypeVar("T")


class Options(Section):
    """How the device is reached. What is null is what the ssh command would take."""

    host: str = Field(min_length=1, description="Name or address.")
    port: int = Field(22, ge=1, le=65535, description="Port of the SSH server.")
    user: str | None = Field(None, description="User on the device; null: the name of the local user.")
    key: Path | None = Field(None, description="Private key file; null: the keys of the agent and of ~/.ssh.")
    known_hosts: Path = Field(Path("~/.ssh/known_hosts"), description="File that has the server's key.")
    folder: str | None = Field(
        None, pattern="^/.", description="Folder on the device for files and programs; null: ~/.cache/edgekd there."
    )
    connect_timeout_seconds: float = Field(15, gt=0, description="For connecting and logging in.")


def connect(device: devices.Device) -> Ssh:
    """Log in, make a folder; raises DeviceError that says which of it failed."""
    options = devices.options(device, Options)
    try:
        import asyncssh
    except ImportError:
        raise DeviceError(
            "the package asyncssh is missing", where=device.name, todo="Install it: pip install 'edgekd[ssh]'."
        ) from None
    loop = _Loop(device.name)
    try:
        connection, sftp, home = loop.call(_login(asyncssh, device.name, options), None)
        folder = options.folder or f"{home.rstrip('/')}/.cache/edgekd"
        made = Ssh(device.name, loop, connection, sftp, folder)
    except BaseException:
        loop.stop()
        raise
    try:
        made._prepare()
    except BaseException:
        made.close()
        raise
    return made


async def _login(asyncssh: Any, name: str, options: Options) -> tuple[Any, Any, str]:
    """A connection, an SFTP client on it, and the home folder."""
    logging.getLogger("asyncssh").setLevel(logging.ERROR)  # what goes wrong is raised
    place = f"{options.host}:{options.port}"
    known_hosts = options.known_hosts.expanduser()
    user = options.user or getpass.getuser()

    def error(what: str, todo: str = "") -> DeviceError:
        return DeviceError(what, where=name, todo=todo)

    def untrusted() -> DeviceError:
        host = options.host if options.port == 22 else f"[{options.host}]:{options.port}"
        trusted = known_hosts.is_file() and any(
            asyncssh.read_known_hosts(str(known_hosts)).match(options.host, "", options.port)[:2]
        )
        if trusted:
            what = f"{place} has another host key than the one in {known_hosts}: another machine answers"
            return error(what, f"If it was installed anew, remove the old key: ssh-keygen -R '{host}'.")
        todo = f"Compare its fingerprint, then: ssh-keyscan -p {options.port} {options.host} >> {known_hosts}."
        return error(f"the host key of {place} is not in {known_hosts}", todo)

    if not known_hosts.is_file():
        raise untrusted()
    key: dict[str, Any] = {}
    if options.key is not None:
        try:
            key = {"client_keys": [asyncssh.read_private_key(str(options.key.expanduser()))], "agent_path": None}
        except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as problem:
            if "passphrase" in str(problem).lower():
                what = f"the key {options.key} needs a passphrase"
                raise error(what, "Add it to the agent, and leave out options.key.") from None
            raise error(f"cannot read the key {options.key} ({_why(problem)})") from None
    try:
        connection = await asyncio.wait_for(
            asyncssh.connect(
                options.host,
                options.port,
                username=user,
                known_hosts=str(known_hosts),
                config=None,  # the profile says everything
                preferred_auth="publickey",
                x509_trusted_certs=None,
                keepalive_interval=ALIVE_SECONDS,
                **key,
            ),
            options.connect_timeout_seconds,
        )
    except TimeoutError:
        limit = f"{options.connect_timeout_seconds:.0f} s"
        raise error(f"{place} did not let us in within {limit}", "Is it on, and reachable from here?") from None
    except asyncssh.HostKeyNotVerifiable:
        raise untrusted() from None
    except asyncssh.PermissionDenied:
        tried = f"the key {options.key}" if options.key else "any key of the agent or of ~/.ssh"
        todo = "Put the public key into ~/.ssh/authorized_keys on the device (ssh-copy-id)."
        raise error(f"{place} does not accept {tried} for the user '{user}'", todo) from None
    except OSError as problem:
        raise error(
            f"cannot connect to {place} ({_why(problem)})", "Is it on, and is its SSH server running?"
        ) from None
    except asyncssh.Error as problem:
        raise error(f"cannot log in to {place} ({problem.reason})") from None
    try:
        sftp = await asyncio.wait_for(connection.start_sftp_client(), options.connect_timeout_seconds)
        return connection, sftp, await sftp.realpath(".")
    except (asyncssh.Error, TimeoutError, OSError) as problem:
        connection.abort()
        raise error(f"{place} has no SFTP ({_why(problem)})", "Switch on the sftp subsystem of its server.") from None


def _why(problem: BaseException) -> str:
    if isinstance(problem, OSError) and problem.errno is not None and problem.errno > 0:
        return os.strerror(problem.errno)
    return str(getattr(problem, "strerror", None) or getattr(problem, "reason", None) or problem or "no answer")


class Ssh(_linux.Remote):
    """The Transport over one SSH connection; see ``_contract.py``."""

    def __init__(self, name: str, loop: _Loop, connection: Any, sftp: Any, base: str) -> None:
        super().__init__(name, base)
        self._loop, self._connection, self._sftp = loop, connection, sftp

    def probe(self) -> Facts:
        """What /proc and /sys of the device say now; a value that cannot be read is None."""
        return _linux.parse(self._sh(_linux.PROBE).stdout.decode(errors="replace"))

    def open(self, argv: Sequence[str]) -> SshWorker:
        """Start a command that stays."""
        number = self._next()
        process = self._call(self._started(self._command(argv, number)), _linux.SCRIPT_SECONDS)
        return SshWorker(self, argv, number, process)

    def _command(self, argv: Sequence[str], number: int) -> str:
        script = self._start_script(argv, number) + "exec " + shlex.join(argv)
        return f"exec sh -c {shlex.quote(script)}"

    def _run(self, argv: Sequence[str], stdin: bytes, timeout: float) -> Completed:
        number = self._next()
        try:
            done = self._call(self._completed(self._command(argv, number), stdin), timeout)
        except DeviceError:
            self._kill(number)
            raise
        self._running.discard(number)
        return done

    def _sh(self, script: str, *, timeout: float = _linux.SCRIPT_SECONDS) -> Completed:
        return self._call(self._completed("exec sh", script.encode()), timeout)

    async def _started(self, command: str) -> Any:
        return await self._connection.create_process(command, encoding=None)

    async def _completed(self, command: str, stdin: bytes) -> Completed:
        process = await self._started(command)
        try:
            with contextlib.suppress(BrokenPipeError):  # it may end without reading
                process.stdin.write(stdin)
                process.stdin.write_eof()
            stdout, stderr = await process.communicate()
        finally:
            process.close()
        if process.returncode is None:
            raise ConnectionResetError
        return Completed(process.returncode, stdout, stderr)

    def _upload(self, src: Path, dst: str) -> None:
        self._call(self._sftp.put(str(src), dst), None)

    def _download(self, src: str, dst: Path) -> None:
        self._call(self._sftp.get(src, str(dst)), None)

    def _disconnect(self) -> None:
        self._loop.stop(self._connection)

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None, late: str = "") -> T:
        """Its result; raises DeviceError when time is up (``late``), the connection broke or the server refused."""
        import asyncssh

        try:
            return self._loop.call(coroutine, timeout)
        except TimeoutError:
            if timeout is None:  # the network's own
                raise self._lost() from None
            raise self._error(late or f"took longer than {timeout:.0f} s and was stopped") from None
        except asyncssh.SFTPError as problem:
            if isinstance(problem, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                raise self._lost() from None
            raise self._error(f"the device refused a file operation ({problem.reason})") from None
        except asyncssh.ChannelOpenError as problem:
            if self._connection.is_closed():
                raise self._lost() from None
            raise self._error(f"the server starts no command ({problem.reason})") from None
        except (asyncssh.Error, ConnectionError):
            raise self._lost() from None
        except OSError as problem:  # a local file
            raise self._error(f"cannot copy ({problem.strerror}: {problem.filename})") from None

    def _lost(self) -> DeviceError:
        return self._error("the connection broke: the server ended, or the device is gone", "Is it still on?")


class SshWorker:
    """A process on the device that answers lines; see ``_contract.Worker``."""

    def __init__(self, transport: Ssh, argv: Sequence[str], number: int, process: Any) -> None:
        self._transport, self._argv, self._number, self._process = transport, argv, number, process
        self._stderr = b""
        self._open = True
        transport._loop.call(self._collecting(), None)

    async def _collecting(self) -> None:
        self._collector = asyncio.ensure_future(self._collect())

    async def _collect(self) -> None:
        """Read stderr all the time: what nobody reads stops stdout too."""
        while some := await self._process.stderr.read(65536):
            self._stderr = (self._stderr + some)[-4 * _linux.TAIL :]

    def ask(self, line: bytes, *, timeout: float) -> bytes:
        """Send a line and wait for one; raises DeviceError on time-out, or when process or connection ended."""
        if not self._open:
            raise self._transport._error("the runner has ended")
        late = f"no answer within {timeout:.0f} s; the runner was stopped"
        try:
            return self._transport._call(self._answer(line), timeout, late)
        except DeviceError:
            self.close()
            raise
        except _Ended as end:
            self.close()
            raise self._transport._ended(self._argv, end.code, self._stderr) from None

    async def _answer(self, line: bytes) -> bytes:
        with contextlib.suppress(BrokenPipeError):  # the reason comes from its exit code
            self._process.stdin.write(line.rstrip(b"\n") + b"\n")
            await self._process.stdin.drain()
        answer: bytes = await self._process.stdout.readline()
        if answer.endswith(b"\n"):
            return answer
        await self._process.wait_closed()
        if self._process.returncode is None:
            raise ConnectionResetError
        await self._collector
        raise _Ended(self._process.returncode)

    def close(self) -> None:
        """Kill its process group: what it had to say has been said."""
        if self._open:
            self._open = False
            self._transport._kill(self._number)
            with contextlib.suppress(DeviceError, RuntimeError):
                self._transport._loop.call(self._closing(), GRACE)

    async def _closing(self) -> None:
        self._process.close()
        self._collector.cancel()


class _Ended(Exception):
    """The worker ended: its exit code, or minus the signal."""

    def __init__(self, code: int) -> None:
        self.code = code


class _Loop:
    """An event loop in a thread, so that the rest of edgekd can wait for it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"ssh {name}", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None) -> T:
        """Wait for a coroutine; raises TimeoutError after ``timeout`` seconds."""
        if self._loop.is_closed():
            coroutine.close()
            raise ConnectionResetError
        waiting = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, timeout), self._loop)
        return waiting.result(None if timeout is None else timeout + GRACE)

    def stop(self, connection: Any = None) -> None:
        """Drop the connection and end the thread."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            if connection is not None:
                connection.close()
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(connection.wait_closed(), 1)
                connection.abort()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._loop.close()
