"""Redis at full speed; by itself, so that an agent that is overrun has no other test's requests to lose."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import agent, database_clients, databases
from support.database_clients import RedisServer

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def redis(place: object) -> Iterator[RedisServer]:
    with databases.redis() as server:
        yield RedisServer(server)


def test_what_an_agent_that_stands_still_cannot_take_is_added_up(
    place: Any, redis: RedisServer, tmp_path: Path
) -> None:
    """The ring is full for most of the run: operations without a record are in the sums of their connections."""
    program = shutil.which("redis-benchmark")
    requests = 150_000
    selection = agent.selecting(pids=[redis.pid])
    with agent.running(tmp_path, selection, prints=False) as watching:
        watching.wait_watched([redis.pid])
        redis.ask("CONFIG", "RESETSTAT")
        os.kill(watching.pid, signal.SIGSTOP)
        try:
            subprocess.run(
                [program, "-p", str(redis.port), "-c", "10", "-n", str(requests), "-q", "-t", "get"],
                check=True, stdout=subprocess.DEVNULL, timeout=120,
            )  # fmt: skip
        finally:
            os.kill(watching.pid, signal.SIGCONT)
        counted = redis.counted().total()
        # the connections of the load are over: what their sums found no room for is declared
        seen, before = -1.0, -2.0
        while seen != before:
            before = seen
            time.sleep(2.5)
            seen = watching.metric("db_server_operation_duration_seconds_count", db_system_name="redis")
        lost = watching.losses()
    print(f"the server counted {counted}; seen {seen}, {lost}")
    declared = lost.get("operations", 0) + lost.get("unread_redis", 0)
    assert counted >= requests
    assert 0 <= counted + 2 - seen - declared <= 2, lost


@pytest.mark.parametrize("pipeline", [1, 50])
def test_redis_at_full_speed(place: Any, redis: RedisServer, pipeline: int, tmp_path: Path) -> None:
    """What is seen and what is declared lost, both in operations, are together what the server counted."""
    program = shutil.which("redis-benchmark")
    requests = 60_000 if pipeline == 1 else 300_000
    # by its number: the server has written its title over its command line
    selection = agent.selecting(cmd_args=f"*{place.directory}/*", pids=[redis.pid])
    with agent.running(tmp_path, selection, prints=False) as watching:
        watching.wait_watched([1])
        redis.ask("CONFIG", "RESETSTAT")
        run = database_clients.start_program(
            [
                program,
                "-p",
                str(redis.port),
                "-P",
                str(pipeline),
                "-c",
                "20",
                "-n",
                str(requests),
                "-q",
                "-t",
                "set,get",
            ],
            place.directory,
        )
        run.operations(timeout_s=120)
        counted = redis.counted().total()
        found = {}
        for _ in range(40):
            before, found = found, {
                "client": watching.metric("db_client_operation_duration_seconds_count", db_system_name="redis"),
                "server": watching.metric("db_server_operation_duration_seconds_count", db_system_name="redis"),
                "lost": watching.losses(),
            }  # fmt: skip
            if found == before:
                break
            time.sleep(1.5)
    print(f"redis-benchmark -P {pipeline}: the server counted {counted}; {found}")
    assert counted >= 2 * requests
    lost = found["lost"].get("operations", 0) + found["lost"].get("unread_redis", 0)
    asked = 2  # the server answered RESETSTAT and INFO besides, which its statistics do not hold
    assert found["client"] <= counted, found
    assert found["server"] <= counted + asked, found
    # what is lost may be of either side: both are watched
    assert found["client"] + found["server"] + lost == 2 * counted + asked, found
