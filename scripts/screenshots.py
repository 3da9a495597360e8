"""Pictures of every view of a running onlooker: light, dark and as wide as a phone.

    scripts/screenshots.py http://127.0.0.1:9700 build/screenshots

Needs playwright and a Chromium, as `make test-setup` installs them.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browser import chromium, visit

LOOKS: dict[str, dict[str, Any]] = {"light": {}, "dark": {"dark": True}, "phone": {"width": 390, "height": 844}}


def ask(url: str, path: str, **query: str) -> Any:
    """An answer of the API."""
    with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as response:
        return json.load(response)


def views(url: str) -> dict[str, tuple[str, str]]:
    """Name of a view to its fragment, and to what shows that it is there."""
    services = ask(url, "/api/v1/overview")["services"]
    busiest = max((one for one in services if one["server"]), key=lambda one: one["server"]["rate"])
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


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description="Pictures of every view.")
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", action="store_true", help="the whole length of each view, not one screen")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, (fragment, there) in views(options.url).items():
            for look, how in LOOKS.items():
                with visit(browser, options.url, **how) as window:
                    window.open(fragment, there)
                    window.page.wait_for_timeout(1500)
                    path = options.folder / f"{name}-{look}.png"
                    window.page.screenshot(path=str(path), full_page=options.whole)
                    for fault in window.faults:
                        print(f"{path}: {fault}", file=sys.stderr)
                    print(path)


if __name__ == "__main__":
    main()
