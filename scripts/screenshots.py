"""Pictures of every view of a running onlooker: light, dark and as wide as a phone.

    scripts/screenshots.py http://127.0.0.1:9700 build/screenshots

Needs playwright and a Chromium, as `make test-setup` installs them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.browser import chromium
from support.screens import take


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description="Pictures of every view.")
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", action="store_true", help="the whole length of each view, not one screen")
    options = parser.parse_args()
    with chromium() as browser:
        wrong = take(browser, options.url, options.folder, whole=options.whole)
    print("\n".join(wrong) or f"taken: {options.folder}")


if __name__ == "__main__":
    main()
