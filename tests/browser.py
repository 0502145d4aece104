"""A headless Chromium over its debugging pipe, which needs nothing but the standard library."""

import base64
import itertools
import json
import os
import pathlib
import shutil
import subprocess
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. What its pages print to the console, and the errors that they throw, are in `said`."""

    def __init__(self, profile: pathlib.Path) -> None:
        """Starts the browser, with a profile of its own."""
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        flags = f"--headless --no-sandbox --disable-gpu --user-data-dir={profile} --remote-debugging-pipe about:blank"
        # The browser reads commands from descriptor 3 and answers on 4.
        shell = f'exec "$0" {flags} 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, str(CHROMIUM)], pass_fds=(read, write), stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._numbers, self._left, self._session = itertools.count(1), b"", None
        self.said: list[Any] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _message(self) -> Any:
        while b"\0" not in self._left:
            got = os.read(self._in, 1 << 20)
            if not got:
                raise ConnectionError("the browser has ended")
            self._left += got
        text, _, self._left = self._left.partition(b"\0")
        message = json.loads(text)
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(message["params"])
        return message

    def call(self, method: str, **params: Any) -> Any:
        """A command of the DevTools protocol, and what it answers."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != number:
            pass
        if "error" in message:
            raise ValueError(f"{method}: {message['error']}")
        return message["result"]

    def open(self, page: pathlib.Path, width: int, dark: bool = False) -> None:
        """Opens a file in a window of this width, and waits until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(found["exceptionDetails"])
        return found["result"].get("value")

    def key(self, key: str) -> None:
        """Presses a key."""
        codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39}
        text = {"text": "\r"} if key == "Enter" else {}
        known = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **known, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def point(self, selector: str) -> None:
        """Moves the mouse to the middle of an element."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center'}})")
        box = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({found}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def picture(self, whole: bool = False) -> bytes:
        """What the window shows, or the whole page, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
