"""Any text as a configuration file: it is read, or refused with a `ConfigError` that says where; nothing else."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    import driver

    driver.begin()

from onlooker.config import load_text
from onlooker.errors import ConfigError

ENVIRON = {"HOME": "/root", "SET": "1s", "ONLOOKER_LOG_LEVEL": "INFO"}


def one_input(data: bytes) -> None:
    """As a file, and its first line as a value of the environment."""
    text = data.decode("utf-8", "replace")
    for environ in (ENVIRON, {**ENVIRON, "ONLOOKER_OPEN_PORT": text.partition("\n")[0].replace("\0", "")}):
        refused = ""
        try:
            load_text(text, name="fuzz.yaml", environ=environ, flags={})
        except ConfigError as err:
            refused = str(err) or "without a word"
        assert refused != "without a word"
        assert len(refused) < 10_000 + 2 * len(text)


if __name__ == "__main__":
    driver.main("config", one_input, sys.argv[1:])
