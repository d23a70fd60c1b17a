"""Headless Chromium over its debugging pipe: pages as a browser lays them out, and what it complains of."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
          "--hide-scrollbars", "--remote-debugging-pipe"]  # fmt: skip


class Browser:
    """One page of a browser.

    Attributes:
        complaints: what the console said, and requests for anything but the page itself.
    """

    def __init__(self, read: int, write: int) -> None:
        """Opens an empty page over the two ends of the pipe."""
        self._input, self._output = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self._number, self._rest, self._events = 0, b"", list[dict[str, Any]]()
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._output.write(json.dumps(message).encode() + b"\0")
        self._output.flush()
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def show(self, page: Path, width: int, *, scheme: str = "light") -> float:
        """Loads a page.

        Args:
            page: its file.
            width: of the screen, pixels.
            scheme: "light" or "dark".

        Returns:
            Seconds from the start of the navigation to the end of the load event, as the browser measured them.
        """
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._note(self._next())
        return float(self.value("performance.getEntriesByType('navigation')[0].loadEventEnd")) / 1000

    def value(self, expression: str) -> Any:
        """The value of an expression in the page; the page itself runs no script."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, file: Path) -> Path:
        """Saves a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(shot))
        return file

    def print(self, file: Path) -> Path:
        """Saves the page as it is printed."""
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF")["data"]))
        return file

    def __enter__(self) -> Self:
        """Is ready already."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the browser."""
        self._session = None
        self.call("Browser.close")
        self._input.close()
        self._output.close()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = self._input.read1(1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        method, parameters = event.get("method"), event.get("params", {})
        if method in {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}:
            self.complaints.append(json.dumps(parameters))
        if method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "about:")):
            self.complaints.append(parameters["request"]["url"])


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that is gone afterwards.

    Yields:
        The browser.
    """
    assert PROGRAM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        redirected = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            with Browser(ours_in, ours_out) as opened:
                yield opened
            process.wait(20)
        finally:
            process.kill()
            process.wait()
