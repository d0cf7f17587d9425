"""Open a report in a browser, wide and narrow, and fail where a reader would see something broken.

    .venv/bin/python tools/check_report.py runs/demo/lifted_64/seed1/report.html [--shots folder]

Fails when the console has an error, when anything is fetched from anywhere but the file itself, when the page scrolls
sideways, when an image shows nothing or has no alternative text, and when the map's buttons do not enlarge it. Needs
Chromium or Chrome; no other software: it talks to the browser over a pipe (Chrome DevTools Protocol).
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from data_prep.files import written_aside

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (400, 1400)  # pixels: a phone, a projector
SECONDS = 60  # for one answer of the browser
LOOK = """(() => {
  const images = [...document.images], map = document.querySelector(".map img"), page = document.documentElement;
  const small = map && map.getBoundingClientRect().width;
  document.querySelector('.map [data-do="in"]')?.click();
  const large = map && map.getBoundingClientRect().width;
  document.querySelector('.map [data-do="whole"]')?.click();
  return {
    broken: images.filter(image => !image.complete || !image.naturalWidth).map(image => image.alt),
    nameless: images.filter(image => !image.alt).length,
    images: images.length,
    sideways: page.scrollWidth - page.clientWidth,
    wider: [...document.querySelectorAll("main *")].filter(part => !part.closest(".wide, pre, .map") &&
      part.getBoundingClientRect().right > page.clientWidth + 1).slice(0, 5).map(part => part.outerHTML.slice(0, 80)),
    enlarged: !map || large > 1.5 * small,
    height: page.scrollHeight,
  };
})()"""


# Waits for the pictures, also those that the window does not show yet.
DECODED = """Promise.all([...document.images].map(image => { image.loading = "eager"; return image.decode().catch(() => 0); }))
  .then(() => 0)"""


def find_browser(named=None):
    """The browser to start: the one that is `named`, or the first that is installed. ValueError where there is none."""
    if program := next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None):
        return program
    raise ValueError(f"no browser here: none of {named or ', '.join(BROWSERS)} is installed. On Debian: apt-get install chromium. "
                     "Or name one with --browser")  # fmt: skip


class Browser:
    """A headless browser with one page; `events` gathers what it reports."""

    def __init__(self, program, home):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        options = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                   "--remote-debugging-pipe", f"--user-data-dir={home}"]  # fmt: skip
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", program, *options]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), **silent)
        os.close(theirs_in)
        os.close(theirs_out)
        self.into, self.out = os.fdopen(ours_out, "wb", 0), ours_in
        self.rest, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.into.write(json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda message: message.get("id") == self.number, method)
        if "error" in answer:
            raise OSError(f"the browser refused {method}: {answer['error'].get('message')}")
        return answer["result"]

    def wait_for(self, method):
        if all(event["method"] != method for event in self.events):
            self._wait(lambda message: message.get("method") == method, method)

    def _wait(self, is_it, what):
        """The next message that `is_it` says yes to; events on the way are gathered."""
        end = time.monotonic() + SECONDS
        while True:
            while b"\0" not in self.rest:
                if not select.select([self.out], [], [], max(0, end - time.monotonic()))[0]:
                    raise OSError(f"the browser did not answer within {SECONDS} s ({what})")
                part = os.read(self.out, 1 << 20)
                if not part:
                    raise OSError(f"the browser ended ({what}); try `{self.process.args[4]} --headless --dump-dom about:blank`")
                self.rest += part
            line, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(line)
            if "method" in message:
                self.events.append(message)
            if is_it(message):
                return message

    def open(self, address, width):
        """Load a page in a window `width` pixels wide."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def evaluate(self, expression):
        """The value of a JavaScript expression, of a promise what it comes to; OSError with what it throws."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", **asked)
        if "exceptionDetails" in answer:
            raise OSError(f"the page cannot be looked at: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def choose_file(self, selector, path):
        """Give the file at `path` to an <input type=file>, as a person would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[os.path.abspath(path)], nodeId=node)

    def shoot(self, path, width, height):
        """Write a picture of the page to `path`, PNG, beyond what the window shows."""
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}
        content = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        with written_aside(path) as aside:
            aside.write_bytes(base64.b64decode(content))

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def look(browser, path, width, shot):
    """What is wrong with the page at `path` in a window `width` pixels wide, as a list of sentences."""
    address = path.resolve().as_uri()
    browser.open(address, width)
    browser.evaluate(DECODED)
    seen = browser.evaluate(LOOK)
    if shot:
        browser.shoot(shot, width, seen["height"])
    wrong = []
    for event in browser.events:
        method, of = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            wrong.append(f"an error in its script: {of['exceptionDetails'].get('exception', {}).get('description', of)}")
        elif method == "Log.entryAdded" and of["entry"]["level"] in ("error", "warning"):
            wrong.append(f"the console says: {of['entry']['text']}")
        elif method == "Runtime.consoleAPICalled" and of["type"] in ("error", "warning", "assert"):
            wrong.append(f"the console says: {[argument.get('value') for argument in of['args']]}")
        elif method == "Network.requestWillBeSent" and not of["request"]["url"].startswith((address, "data:")):
            wrong.append(f"fetches {of['request']['url']}")
    if seen["sideways"] > 0:
        wrong.append(f"scrolls sideways by {seen['sideways']} pixels; too wide: {seen['wider']}")
    wrong += [f"shows nothing for the image {alt!r}" for alt in seen["broken"]]
    wrong += [f"{seen['nameless']} images have no alternative text"] if seen["nameless"] else []
    wrong += [] if seen["enlarged"] else ["the map's button does not enlarge it"]
    print(f"{path}, {width} pixels wide: {seen['images']} images, {seen['height']:,} pixels high, {len(wrong)} complaints")
    return [f"{path}, {width} pixels wide: {line}" for line in wrong]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.html to open")
    parser.add_argument("--shots", type=Path, help="folder for a picture of the page at each width")
    parser.add_argument("--browser", help=f"program to open it with (default the first there of {', '.join(BROWSERS)})")
    arguments = parser.parse_args()
    if not arguments.report.is_file():
        raise ValueError(f"{arguments.report}: no such file; tools/report.py makes it (make demo)")
    program = find_browser(arguments.browser)
    wrong = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        browser = Browser(program, home)
        try:
            for width in WIDTHS:
                shot = arguments.shots / f"{arguments.report.stem}_{width}.png" if arguments.shots else None
                wrong += look(browser, arguments.report, width, shot)
        finally:
            browser.close()
    if wrong:
        raise ValueError("\n".join(wrong))
    return 0


if __name__ == "__main__":
    run("check_report", main)
