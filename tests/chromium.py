"""Headless Chromium for tests of pages, driven over the pipe of its DevTools protocol: no port, no package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE_SECONDS = 60.0


def find_chromium() -> str | None:
    """The program, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """A page in a browser."""

    def __init__(self, to_browser: int, from_browser: int):
        self._out, self._in = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._received = b""
        self._session: dict[str, str] = {}
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def open(self, page: Path | str, *, width: int, height: int, is_dark: bool = False) -> None:
        """Show a page, a file or an address, in a window of a size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        address = page.as_uri() if isinstance(page, Path) else page
        told = self._ask("Page.navigate", url=address)
        assert "errorText" not in told, told
        self.wait_for(f"location.href == {json.dumps(address)} && document.readyState == 'complete'")

    def value_of(self, script: str) -> Any:
        """What an expression is on the page; scripts that a page's policy forbids are none of this."""
        told = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Until an expression is true."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while not self.value_of(script):
            assert time.monotonic() < ends, f"never true: {script}"
            time.sleep(0.02)

    def box_of(self, selector: str) -> dict[str, float]:
        """Left, top, width and height of an element in the window."""
        box: dict[str, float] = self.value_of(
            f"(({{left, top, width, height}}) => ({{left, top, width, height}}))"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return box

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of an element, which is scrolled to first."""
        self.value_of(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', inline: 'center'}})"
        )
        box = self.box_of(selector)
        place = {"x": box["left"] + box["width"] / 2, "y": box["top"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the mouse, from one place in the window to another, by way of some between."""
        self._mouse("mousePressed", *start)
        for part in (0.3, 0.7, 1.0):
            at = (start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1]))
            self._mouse("mouseMoved", *at, buttons=1)
        self._mouse("mouseReleased", *end)

    def _mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self._ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, x=x, y=y, **more)

    def wheel(self, selector: str, pixels: float) -> None:
        """Turn the wheel over the middle of an element."""
        box = self.box_of(selector)
        place = {"x": box["left"] + box["width"] / 2, "y": box["top"] + box["height"] / 2}
        self._ask("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=pixels, **place)

    def press(self, key: str) -> None:
        """A key by its name, such as "ArrowDown", "Enter" or "Escape"."""
        number = {
            "Enter": 13,
            "Escape": 27,
            "End": 35,
            "Home": 36,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            about = {"key": key, "code": key, "windowsVirtualKeyCode": number, **(text if kind == "keyDown" else {})}
            self._ask("Input.dispatchKeyEvent", type=kind, **about)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self._ask("Input.insertText", text=text)

    def picture(self) -> bytes:
        """A PNG file of the window."""
        return base64.b64decode(self._ask("Page.captureScreenshot")["data"])

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            told = json.loads(self._next_message())
            if told.get("id") == number:
                assert "error" not in told, told["error"]
                result: dict[str, Any] = told["result"]
                return result

    def _next_message(self) -> bytes:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], PATIENCE_SECONDS)
            assert ready, "the browser says nothing"
            some = os.read(self._in, 1 << 20)
            assert some, "the browser has ended"
            self._received += some
        message, _, self._received = self._received.partition(b"\0")
        return message


@contextlib.contextmanager
def browser(program: str, folder: Path) -> Iterator[Tab]:
    """A browser with one tab, which ends with the block.

    Args:
        program: from `find_chromium`.
        folder: for what it keeps.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"]
    options += ["--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    pipes = [*os.pipe(), *os.pipe()]
    its_in, our_out, our_in, its_out = (fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 10) for pipe in pipes)
    for pipe in pipes:
        os.close(pipe)
    actions = [(os.POSIX_SPAWN_DUP2, its_in, 3), (os.POSIX_SPAWN_DUP2, its_out, 4)]
    actions += [(os.POSIX_SPAWN_OPEN, place, os.devnull, os.O_WRONLY, 0) for place in (1, 2)]
    environment = {**os.environ, "HOME": str(folder)}
    process = os.posix_spawn(program, [program, *options], environment, file_actions=actions, setpgroup=0)
    os.close(its_in)
    os.close(its_out)
    try:
        yield Tab(our_out, our_in)
    finally:
        os.close(our_out)
        os.close(our_in)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
