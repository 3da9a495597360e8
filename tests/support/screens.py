"""Pictures of every view of a running onlooker: light, dark and as wide as a phone."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from support.browser import visit

LOOKS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 844}}


def ask(url: str, path: str, **query: str) -> Any:
    """An answer of the API."""
    with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as response:
        return json.load(response)


def views(url: str) -> dict[str, tuple[str, str]]:
    """Name of a view to its fragment, and to what shows that it is there."""
    services = ask(url, "/api/v1/overview")["services"]
    # the one in the middle has most to show
    busiest = max(
        (one for one in services if one["server"]), key=lambda one: (bool(one["client"]), one["server"]["p95_ms"] or 0)
    )
    # the trace with the most services tells the most
    found = ask(url, "/api/v1/traces", entry="1", limit="200")
    richest = max(found["traces"].items(), key=lambda one: (len(one[1]["services"]), one[1]["spans"]))[0]
    return {
        "overview": ("", "li.service"),
        "map": ("#/map", "g.node"),
        "service": (f"#/service/{busiest['id']}", ".u-legend .u-value"),
        "traces": ("#/traces", ".spans li"),
        "live": ("#/traces?live=1", ".spans li"),
        "trace": (f"#/trace/{richest}", ".bar-row"),
        "agent": ("#/agent", "table tbody tr"),
    }


def take(browser: Any, url: str, folder: Path, *, whole: bool = False) -> list[str]:
    """Take them all.

    Args:
        browser: See `support.browser.chromium`.
        url: Of the page.
        folder: Where to.
        whole: The whole length of each view, not one screen.

    Returns:
        What was wrong with a view: errors on the console, requests to other hosts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    found = views(url)
    for look, how in LOOKS.items():
        with visit(browser, url, **how) as window:
            for name, (fragment, there) in found.items():
                window.open(fragment, there)
                window.page.wait_for_timeout(1000)
                window.page.screenshot(path=str(folder / f"{name}-{look}.png"), full_page=whole)
            wrong += [f"{look}: {one}" for one in window.faults]
    return wrong
