"""A browser on this machine, as a device: its page ``runtimes/web/index.html`` is the runner.

Playwright starts Chromium and opens pages; a server on 127.0.0.1 hands out the page, its runtimes (``node_modules``)
and the files that were pushed, and nothing else. There are no processes on such a device: ``["runner", <runtime>]``
opens a page, whose answers are its stdout and whose console is its stderr.

Every page has a browser context of its own, so it starts with an empty HTTP cache, no compiled WebAssembly and a
renderer process of its own: cold are the library's download and compilation, the model's download and its load. Warm
are the browser's main process, the files in this machine's page cache, and the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import shutil
import signal
import threading
import time
import urllib.parse
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from edgekd import registry
from edgekd.artifact import Facts
from edgekd.bench import devices
from edgekd.bench.devices import Device
from edgekd.bench.transports._contract import Completed
from edgekd.bench.transports.local import Local
from edgekd.errors import DeviceError
from edgekd.recipe import Section

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")  # on PATH, in this order
START = 60.0  # seconds in which the browser must start
OPEN = 60.0  # seconds in which a page must be there
GRACE = 5.0  # seconds for a page or the browser to close by itself
TAIL = 400  # characters of the page's console that go into an error
# What Chromium otherwise does beside the measurement: talk to its maker, and draw on a GPU.
ARGUMENTS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",  # else it is not compiled while it arrives
}
# HTML standard, "cross-origin isolation": what gives a page threads and the finer clock.
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}

ANSWER = "line => edgekd.answer(line)"

T = TypeVar("T")


class Options(Section):
    """How the browser is started (``options`` of a device profile)."""

    executable: Path | None = Field(
        None, description="The browser's program; null: Chromium or Chrome on PATH, else Playwright's own Chromium."
    )
    isolated: bool = Field(True, description="Serve the page cross-origin isolated: threads, and a clock of 5 us.")
    args: list[str] = Field(default_factory=list, description="Further arguments of the browser.")
    headless: bool = Field(True, description="Without a window.")
    modules: Path | None = Field(None, description="Folder of the runtimes; null: node_modules beside the page.")
    page_memory: bool = Field(False, description="Also ask the browser for all memory of the page; takes 20 s a time.")


def connect(device: Device) -> Browser:
    """Start server and browser; raises DeviceError where Playwright, a browser or the runtimes are missing."""
    options: Options = devices.options(device, Options)
    web = registry.folder("runtimes") / "web"
    modules = options.modules or web / "node_modules"
    if not modules.is_dir():
        raise DeviceError(
            f"the runtimes for browsers are not installed ({modules} is missing)",
            where=device.name,
            todo=f"Run `npm ci` in {web}, or name a folder in options.modules.",
        )
    try:
        import playwright.async_api  # noqa: F401 - the light half does without it
    except ImportError:
        raise DeviceError(
            "the package 'playwright' is not installed", where=device.name, todo="pip install 'edgekd[browser]'"
        ) from None
    executable = options.executable or next((Path(one) for name in BROWSERS if (one := shutil.which(name))), None)
    if executable is not None and not executable.is_file():
        raise DeviceError(f"there is no browser at {executable}", where=device.name, todo="Set options.executable.")
    return Browser(device.name, options, executable, web, modules)


class Browser:
    """The Transport of a browser on this machine; see ``_contract.py``."""

    def __init__(self, name: str, options: Options, executable: Path | None, web: Path, modules: Path) -> None:
        self._name, self._options, self._executable = name, options, executable
        self._files: dict[str, Path] = {}
        self._playwright: Any = None
        self._browser: Any = None
        self._closed = False
        self._pid: int | None = None  # of the browser; it leads its process group
        self._loop = asyncio.new_event_loop()  # Playwright lives in it, in a thread of its own
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"browser {name}", daemon=True)
        self._server = _Server(web, modules, self._files, ISOLATION if options.isolated else {})
        self._thread.start()
        try:
            self._call(self._started(), START)
        except BaseException:
            self.close()
            raise

    # --- the contract ---

    def probe(self) -> Facts:
        """This machine and its load, and the browser: name, version, user agent, whether pages are isolated."""
        host = Local(self._name)
        try:
            facts = host.probe()
        finally:
            host.close()
        page = self._page()
        try:
            told = page.evaluate("() => ({ user_agent: navigator.userAgent, isolated: crossOriginIsolated })", OPEN)
        finally:
            page.close()
        return {
            **facts,
            "browser": self._browser.browser_type.name,
            "browser_version": self._browser.version,
            "user_agent": told["user_agent"],
            "cross_origin_isolated": told["isolated"],
            "headless": self._options.headless,
        }

    def push(self, src: Path, dst: str) -> None:
        """Let the server hand out ``src`` (a file, or the files of a folder); nothing is copied."""
        if not src.exists():
            raise DeviceError(f"there is no {src} to push", where=self._name)
        self._files[dst] = src.resolve()

    def exec(self, argv: Sequence[str], *, stdin: bytes, timeout: float) -> Completed:
        """A fresh page answers the lines of ``stdin`` until it ends or they do."""
        end = time.monotonic() + timeout
        worker = self.open(argv)
        answers = []
        try:
            for line in stdin.splitlines() or [b""]:
                answers.append(worker.ask(line, timeout=max(0.0, end - time.monotonic())))
                if worker.code is not None:
                    break
        finally:
            worker.close()
        return Completed(worker.code or 0, b"".join(answers), worker.said().encode())

    def open(self, argv: Sequence[str]) -> BrowserWorker:
        """A page that stays."""
        if len(argv) != 2 or argv[0] != "runner":
            raise DeviceError(f"a browser runs no programs ({' '.join(argv)})", where=self._name)
        return BrowserWorker(self._page(), self._name)

    def pull(self, src: str, dst: Path) -> None:
        """Nothing can be pulled: always DeviceError."""
        raise DeviceError(f"a browser keeps no files, so there is no '{src}' to pull", where=self._name)

    def close(self) -> None:
        """End pages, browser and server; more than once does no harm."""
        if self._closed:
            return
        with contextlib.suppress(Exception):
            self._call(self._stopped(), 3 * GRACE)
        self._closed = True
        self._kill()
        with contextlib.suppress(Exception):
            self._server.shutdown()
            self._server.server_close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            with contextlib.suppress(Exception):
                self._loop.close()

    # --- in Playwright's thread ---

    def _call(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run ``work`` in Playwright's thread; raises DeviceError on its errors, or after ``timeout`` seconds."""
        from playwright.async_api import Error

        if self._closed:
            work.close()
            raise DeviceError("the browser was closed", where=self._name)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except (FutureTimeoutError, TimeoutError):
            future.cancel()
            raise DeviceError(f"the browser did not answer within {timeout:.0f} s", where=self._name) from None
        except Error as error:
            raise DeviceError(_first_line(error), where=self._name) from None

    async def _started(self) -> None:
        """Start the browser, and Playwright where it does not run yet."""
        from playwright.async_api import Error, async_playwright

        if self._playwright is None:
            self._playwright = await async_playwright().start()
        try:
            self._browser = await self._playwright.chromium.launch(
                executable_path=self._executable,
                headless=self._options.headless,
                args=[*ARGUMENTS, *self._options.args],
                timeout=START * 1000,
                handle_sigint=False,  # the host decides when it is over
                handle_sigterm=False,
                handle_sighup=False,
            )
        except Error as error:
            program = self._executable or "Playwright's own Chromium"
            raise DeviceError(
                f"{program} did not start: {_first_line(error)}",
                where=self._name,
                todo="Install Chromium or Chrome, run `playwright install chromium`, or set options.executable.",
            ) from None
        session = await self._browser.new_browser_cdp_session()
        processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
        self._pid = next(int(one["id"]) for one in processes if one["type"] == "browser")
        await session.detach()

    async def _stopped(self) -> None:
        for ending in (self._browser, self._playwright):
            if ending is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(ending.close() if ending is self._browser else ending.stop(), GRACE)

    def _kill(self) -> None:
        """End what is left of the browser; its helper processes end with it."""
        if self._pid is not None:
            with contextlib.suppress(OSError):
                if os.getpgid(self._pid) == self._pid:
                    os.killpg(self._pid, signal.SIGKILL)
                else:
                    os.kill(self._pid, signal.SIGKILL)
            self._pid = None

    def _page(self) -> _Page:
        if self._browser.is_connected():
            try:
                return self._call(self._opened(), OPEN + GRACE)
            except DeviceError:
                if not self._call(self._gone(), 2 * GRACE):
                    raise
        self._kill()  # it crashed, and took all pages with it: the next page gets a new one
        self._call(self._started(), START)
        return self._call(self._opened(), OPEN + GRACE)

    async def _gone(self) -> bool:
        """Whether the browser has ended; Playwright hears of it a moment after the first call that fails for it."""
        for _ in range(20):
            if not self._browser.is_connected():
                return True
            await asyncio.sleep(GRACE / 20)
        return False

    async def _opened(self) -> _Page:
        context = await self._browser.new_context(service_workers="block", accept_downloads=False)
        try:
            page = _Page(self, context, await context.new_page(), self._loop.create_future())
            query = "?page_memory" if self._options.page_memory else ""
            await page.page.goto(f"{self._server.url}/index.html{query}", timeout=OPEN * 1000)
            await page.page.wait_for_function("() => globalThis.edgekd !== undefined", timeout=OPEN * 1000)
        except BaseException:
            await _closed(context)
            raise
        return page


@dataclass
class _Page:
    """An open page in a context of its own."""

    browser: Browser
    context: Any
    page: Any
    ended: asyncio.Future[str]  # how, when it does
    console: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("crash", lambda _: self._over("crashed (out of memory, or in its runtime)"))
        self.page.on("close", lambda _: self._over("was closed"))

    def _over(self, how: str) -> None:
        if not self.ended.done():
            self.ended.set_result(how)

    def evaluate(self, script: str, timeout: float, argument: Any = None) -> Any:
        """What ``script`` gives on the page; raises DeviceError when the page ends or ``timeout`` seconds are over."""
        return self.browser._call(self._evaluated(script, timeout, argument), timeout + GRACE)

    async def _evaluated(self, script: str, timeout: float, argument: Any) -> Any:
        from playwright.async_api import Error

        asked = asyncio.ensure_future(self.page.evaluate(script, argument))
        done, _ = await asyncio.wait({asked, self.ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        try:
            if asked in done:
                return asked.result()
        except Error as error:
            await asyncio.wait({self.ended}, timeout=GRACE)  # the reason comes a moment later, where there is one
            how = f"the page {self.ended.result()}" if self.ended.done() else _first_line(error)
        else:
            asked.add_done_callback(lambda one: one.cancelled() or one.exception())  # nobody asks any more
            asked.cancel()
            late = f"no answer within {timeout:.0f} s; the page was closed"
            how = f"the page {self.ended.result()}" if done else late
        said = " | ".join("\n".join(self.console).split("\n"))[-TAIL:].strip(" |")
        raise DeviceError(f"{how}{f': {said}' if said else ''}", where=self.browser._name)

    def close(self) -> None:
        """Close it with its context; a page that does not close takes the browser with it. Never raises."""
        try:
            self.browser._call(_closed(self.context), 2 * GRACE)
        except Exception:  # a page that hangs in the runtime may keep its renderer from answering
            self.browser._kill()


async def _closed(context: Any) -> None:
    await asyncio.wait_for(context.close(), GRACE)


class BrowserWorker:
    """A page that answers lines; see ``_contract.Worker``. ``code`` is its exit code once it has ended."""

    def __init__(self, page: _Page, name: str) -> None:
        self._page, self._name, self._closed = page, name, False
        self.code: int | None = None

    def ask(self, line: bytes, *, timeout: float) -> bytes:
        """Hand the page a line and wait for its answer; raises DeviceError on time-out or when the page ended."""
        if self.code is not None or self._closed:
            how = f"exited with {self.code}" if self.code is not None else "was closed"
            raise DeviceError(f"the runner {how}", where=self._name)
        try:
            answer = self._page.evaluate(ANSWER, timeout, line.decode(errors="replace").rstrip("\n"))
        except DeviceError:
            self.close()
            raise
        self.code = answer["code"]
        document: str = answer["line"]
        return (document + "\n").encode()

    def said(self) -> str:
        """What the page wrote to its console."""
        return "".join(f"{line}\n" for line in self._page.console)

    def close(self) -> None:
        """Close the page; never raises."""
        if not self._closed:
            self._closed = True
            self._page.close()


class _Server(http.server.ThreadingHTTPServer):
    """Hands out the page, the modules and what was pushed, to this machine only."""

    daemon_threads = True

    def __init__(self, web: Path, modules: Path, files: Mapping[str, Path], headers: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.web, self.modules, self.files, self.headers = web.resolve(), modules.resolve(), files, headers
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, name="edgekd pages", daemon=True).start()

    def find(self, path: str) -> Path | None:
        """The file behind a URL's path, or None: nothing outside the three places, and nothing hidden."""
        parts = urllib.parse.unquote(path).lstrip("/").split("/")
        if any(part in ("", ".", "..") or part.startswith(".") or "\\" in part or "\0" in part for part in parts):
            return None
        if parts[0] == "files":
            return self._pushed("/".join(parts[1:]))
        if parts[0] == "node_modules":
            return _inside(self.modules, parts[1:])
        shared = parts[:-1] == ["app", "src", "engines"]  # what the page has in common with an app's library
        return _inside(self.web, parts) if len(parts) == 1 or shared else None

    def _pushed(self, name: str) -> Path | None:
        for given, src in self.files.items():
            if name == given:
                return src if src.is_file() else None
            if name.startswith(given + "/"):
                return _inside(src, name[len(given) + 1 :].split("/"))
        return None


def _inside(folder: Path, parts: Sequence[str]) -> Path | None:
    found = folder.joinpath(*parts).resolve()
    return found if found.is_relative_to(folder) and found.is_file() else None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """One file, or 404."""
        host = self.headers.get("Host", "")
        found = self.server.find(urllib.parse.urlsplit(self.path).path)
        if found is None or host != self.server.url.removeprefix("http://"):  # another host's page may not ask
            self.send_error(404)
            return
        with found.open("rb") as file, contextlib.suppress(ConnectionError):
            self.send_response(200)
            self.send_header("Content-Type", TYPES.get(found.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.send_header("Cache-Control", "no-store")
            for name, value in self.server.headers.items():
                self.send_header(name, value)
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _first_line(error: Exception) -> str:
    """Playwright's errors go on with a log of calls."""
    return str(error).strip().split("\n", 1)[0].removeprefix("BrowserType.launch: ")
