"""Chromium for tests: offline, a fresh profile each time, and every complaint and request kept."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
DRAWN = 60_000  # milliseconds to wait: a busy machine is slow


def chromium() -> str:
    """The installed browser's program; without one, the test is skipped and says so."""
    found = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium on this machine: `apt-get install chromium` as root, or `make browser`")
    return found


@dataclass
class Open:
    """An open page, with what it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, file: Path) -> None:
        """Open a file and wait until what is on the screen is drawn."""
        self.page.goto(file.resolve().as_uri())
        # By selector: a function would be evaluated in the page, which its policy forbids.
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=DRAWN)

    def draw_all(self) -> None:
        """Let every chart come near the screen, as somebody who reads on does."""
        for chart in self.page.locator(".chart").all():
            if chart.is_visible():
                chart.scroll_into_view_if_needed()
                chart.locator(".main-svg").first.wait_for(timeout=DRAWN)
        self.page.evaluate("scrollTo(0, 0)")


@contextmanager
def browser(size: dict[str, int] | None = None, scheme: str = "light") -> Iterator[Open]:
    """A page in a fresh chromium that is cut off from the network."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile, sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            headless=True,
            args=FLAGS,
            offline=True,
            viewport=size or DESKTOP,
            color_scheme=scheme,
        )
        try:
            page = context.new_page()
            opened = Open(page)
            page.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
            page.on("request", lambda request: opened.requests.append(request.url))
            yield opened
        finally:
            context.close()


@contextmanager
def alone(file: Path) -> Iterator[int]:
    """A file in a fresh chromium that nothing is attached to; yields the port on which something can be."""
    flags = [*FLAGS, "--window-size={width},{height}".format(**DESKTOP), "--remote-debugging-port=0"]
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        opened = subprocess.Popen(
            [chromium(), *flags, f"--user-data-dir={profile}", file.resolve().as_uri()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = Path(profile) / "DevToolsActivePort"
            while not (port.exists() and "\n" in port.read_text()):
                if opened.poll() is not None:
                    raise RuntimeError(f"chromium ended with {opened.returncode}")
                time.sleep(0.05)
            yield int(port.read_text().split()[0])
        finally:
            opened.terminate()
            opened.wait()
