"""Redis at full speed; by itself, so that an agent that is overrun has no other test's requests to lose."""

from __future__ import annotations

import shutil
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


@pytest.mark.parametrize("pipeline", [1, 50])
def test_redis_at_full_speed(place: Any, redis: RedisServer, pipeline: int, tmp_path: Path) -> None:
    """Nothing is counted twice, and nothing goes unseen in silence: records that found no room are declared.

    Not held here: that the operations declared lost are as many as were not seen.  User space counts them by the bytes
    that are missing between two segments that it has; at the end of a connection it has no second one.
    """
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
    for side in ("client", "server"):
        assert 0 < found[side] <= counted or found["lost"], found
        assert found[side] == counted or found["lost"].get("ring_full", 0) > 0, found
