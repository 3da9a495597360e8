"""One agent for the tests of a module: it watches what stands in the module's directory or listens in its ports."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import agent, zoo

PORTS = 120
_RANGES = range(20_000, 29_000, PORTS)  # below the ephemeral ports


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module's programs are: the agent's only criterion.

    Attributes:
        directory: Below it all temporary directories are made; it is part of the command lines.
        ports: As a selector takes them; servers of the zoo get theirs from here.
    """

    directory: Path
    ports: str

    def selects(self, **sections: object) -> dict[str, object]:
        """A configuration that watches what is in this place."""
        return agent.selecting(cmd_args=f"*{self.directory}/*", ports=self.ports, **sections)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_range() -> range:
    start = os.getpid() % len(_RANGES)  # another run on this machine takes others
    for first in (*_RANGES[start:], *_RANGES[:start]):
        ports = range(first, first + PORTS)
        if all(map(_is_free, ports)):
            return ports
    pytest.fail("no range of free ports")


@pytest.fixture(scope="module")
def place(live: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A directory and ports of this module's own."""
    tmp_path_factory.getbasetemp()  # pytest's own comes first: it must not lie in what goes with this module
    directory = Path(tempfile.mkdtemp(prefix="live-", dir="/tmp"))  # short: it holds UNIX sockets
    directory.chmod(0o755)
    ports = _free_range()
    numbers = itertools.cycle(ports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(directory))
        patch.setattr(zoo, "free_port", lambda: next(number for number in numbers if _is_free(number)))
        yield Place(directory, f"{ports[0]}-{ports[-1]}")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def onlooker(place: Place) -> Iterator[agent.Agent]:
    """An agent that prints all requests of this module's programs; ended with all checks."""
    with agent.running(place.directory, place.selects()) as started:
        yield started
        assert started.losses() == {}
