"""``python -m onlooker``, and the ``onlooker`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code is the result."""
    from onlooker.cli.main import main as command_line

    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
