"""The agent killed under load: the application does not notice, and nothing stays attached."""

from __future__ import annotations

import random
import threading
import time

import pytest

from support import agent, truth, zoo

pytestmark = pytest.mark.live

TIMES = 20


def test_twenty_kills_under_load(place, tmp_path) -> None:
    failures: list[str] = []
    made = 0
    over = threading.Event()

    def load(port: int) -> None:
        nonlocal made
        round_ = 0
        while not over.is_set():
            plan = truth.plan(round_, 2000, pages=("items", "echo", "fail"), run=f"kill-{round_}")
            with zoo.client("c", port, plan, keep_alive=round_ % 2 == 0, connections=4) as client:
                failures.extend(zoo.wrong_answers(plan, client.run(), echoes=True))
            made += len(plan)
            round_ += 1

    with zoo.server("c-threads") as server:
        thread = threading.Thread(target=load, args=(server.port,))
        thread.start()
        try:
            chance = random.Random(7)
            for _ in range(TIMES):
                started = agent.Agent(tmp_path, agent.selecting(pids=server.tree()), prints=False)
                try:
                    started.wait_ready()
                    started.wait_watched(server.tree())
                    time.sleep(chance.uniform(0.02, 0.4))
                    objects = agent.kernel_objects(started.pid)
                finally:
                    started.kill()
                assert objects["prog"]
                assert agent.still_there(objects) == {}
        finally:
            over.set()
            thread.join(60)
    print(f"{made} requests, {len(failures)} failed, {TIMES} kills")
    assert made > 0
    assert failures == []
