"""A real Chromium that notes what a page should not do: errors on its console, requests to other hosts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser, or a skipped test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not path:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One page of the browser, and what it did wrong."""

    page: Any
    url: str
    faults: list[str] = field(default_factory=list)

    def open(self, fragment: str, wait_for: str) -> None:
        self.page.goto(f"{self.url}/{fragment}")
        self.page.wait_for_selector(wait_for, timeout=15_000)
        self.page.wait_for_timeout(300)

    def check(self) -> None:
        assert self.faults == []
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"the page is {wider} px wider than the window"

    def accessibility(self) -> list[str]:
        """Serious and critical findings of axe-core."""
        # evaluated by the debugger: the page's own policy lets no foreign script in
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "axe.run(document, {resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']})"
        )
        return [
            f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:300]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]


@contextlib.contextmanager
def visit(browser: Any, url: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> Iterator[Visit]:
    """A fresh window."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    made = Visit(page, url)
    host = urlsplit(url).netloc

    def on_request(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != host:
            made.faults.append(f"request to {request.url}")

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            made.faults.append(f"console {message.type}: {message.text}")

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda err: made.faults.append(f"error: {err}"))
    page.on("dialog", lambda dialog: (made.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        yield made
    finally:
        context.close()
