"""wrk at full speed against nginx: every request is counted, or declared lost; and the agent does not grow."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from support import agent, zoo

pytestmark = [pytest.mark.live, pytest.mark.slow]

SECONDS = int(os.environ.get("ONLOOKER_TEST_WRK_SECONDS", "10"))
CONNECTIONS = 32
GROWTH_BYTES = 12 << 20


@pytest.mark.timeout(SECONDS + 120)
def test_full_speed(place, tmp_path) -> None:
    with zoo.server("nginx") as server:
        configuration = agent.selecting(pids=server.tree())
        with agent.running(tmp_path, configuration, prints=False) as onlooker:
            onlooker.wait_watched(server.tree())
            _wrk(server.port, 2)  # so that buffers have their size
            agent.wait_until(lambda: _is_still(onlooker), "all requests of the first run are counted")
            before, rss = _counted(onlooker), onlooker.rss_bytes
            sent = _wrk(server.port, SECONDS)
            agent.wait_until(lambda: _is_still(onlooker), "all requests are counted")
            counted, lost = _counted(onlooker) - before, onlooker.losses()
            grown = onlooker.rss_bytes - rss
        print(f"{sent} by wrk in {SECONDS} s, {counted} counted, lost {lost}")
        print(f"grown by {grown >> 10} KiB from {rss >> 20} MiB")
    assert lost == {}
    assert sent <= counted <= sent + CONNECTIONS  # wrk stops in the middle of a request of each connection
    assert grown < GROWTH_BYTES


def _wrk(port: int, seconds: int) -> int:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://127.0.0.1:{port}/items/1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30)
    assert "Socket errors" not in done.stdout, done.stdout
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def _counted(onlooker: agent.Agent) -> int:
    return int(onlooker.metric("http_server_request_duration_seconds_count"))


def _is_still(onlooker: agent.Agent) -> bool:
    import time

    first = _counted(onlooker)
    time.sleep(1.2)
    return first > 0 and _counted(onlooker) == first
