"""A headless Chromium over its debugging pipe: what a page asks the network for, and what it complains about."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
FLAGS += ("--disable-background-networking", "--remote-debugging-pipe", "--hide-scrollbars")


def found():
    """The path of a Chromium: $BITFAST_CHROMIUM, else the first of NAMES that is there; None without one."""
    return os.environ.get("BITFAST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page at a time. `requests` and `complaints` are those since the last `open`."""

    def __init__(self):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self._profile = tempfile.mkdtemp(prefix="chromium-")

        def pipes_at_3_and_4():
            high = os.dup(to_browser), os.dup(from_browser)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)
            os.set_inheritable(3, True)
            os.set_inheritable(4, True)

        self._process = subprocess.Popen(
            [found(), *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            preexec_fn=pipes_at_3_and_4,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._count, self._session, self._events = b"", 0, None, []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Security", "Audits"):
            self._call(f"{domain}.enable")

    def open(self, url, width=1280, height=900, dark=False):
        """Show the page as on a screen of this size and wait until it is loaded and quiet."""
        phone = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._events = []
        self._call("Page.navigate", url=url)
        self._until(lambda event: event["method"] == "Page.loadEventFired")
        self.evaluate("new Promise(done => setTimeout(done, 300))")

    @property
    def requests(self):
        """URLs asked for, without those that are their own content."""
        sent = (e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent")
        return [url for url in sent if not url.startswith("data:")]

    @property
    def complaints(self):
        """Messages of the console, errors of scripts, and what the browser logs or finds wrong with the page."""
        methods = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded")
        methods += ("Network.loadingFailed",)
        return [json.dumps(event["params"]) for event in self._events if event["method"] in methods]

    def evaluate(self, script):
        """The value of a JavaScript expression, promises awaited."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path):
        """The whole page as PNG."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def close(self):
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _call(self, method, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._count
        answer = self._until(lambda message: message.get("id") == number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _until(self, wanted):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            while b"\0" in self._buffer:
                text, self._buffer = self._buffer.split(b"\0", 1)
                message = json.loads(text)
                if "method" in message:
                    self._events.append(message)
                if wanted({"method": "", **message}):
                    return message
            piece = os.read(self._read, 1 << 20)
            assert piece, f"the browser ended with code {self._process.poll()}"
            self._buffer += piece
        raise TimeoutError("the browser does not answer")
