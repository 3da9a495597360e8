"""Many processes, many paths, many connections: memory stays flat, series are capped, and nothing fails."""

from __future__ import annotations

import re
import resource
import socket
import subprocess
import time

import pytest

from support import agent, zoo

pytestmark = [pytest.mark.live, pytest.mark.slow]

PROCESSES = 1000
PATHS = 100_000
CONNECTIONS = 10_000
SERIES = 2000
GROWTH_BYTES = 16 << 20


@pytest.mark.timeout(600)
def test_processes_paths_and_connections(place, tmp_path) -> None:
    sections = {"limits": {"series": SERIES}, "routes": {"unmatched": "path"}}
    with zoo.server("c-threads") as server:
        configuration = agent.selecting(cmd_args=f"*{place.directory}/*", pids=server.tree(), **sections)
        with agent.running(tmp_path, configuration, prints=False) as onlooker:
            onlooker.wait_watched(server.tree())
            asked = _many_paths(server.port, PATHS // 10, "warm")
            _settled(onlooker, asked)
            rss = onlooker.rss_bytes

            asked += _many_paths(server.port, PATHS, "path")
            _settled(onlooker, asked)
            print(f"{PATHS} paths: grown by {(onlooker.rss_bytes - rss) >> 10} KiB from {rss >> 20} MiB")

            began = time.monotonic()
            asked += _many_processes(place.directory, server.port)
            took_s = time.monotonic() - began
            _settled(onlooker, asked)
            print(f"{PROCESSES} processes in {took_s:.0f} s: grown by {(onlooker.rss_bytes - rss) >> 10} KiB")

            asked += _many_connections(server.port)
            _settled(onlooker, asked)
            grown = onlooker.rss_bytes - rss
            print(f"{CONNECTIONS} connections: grown by {grown >> 10} KiB")

            series = {
                tuple(sorted(sample.labels.items()))
                for sample in onlooker.samples()
                if sample.name == "http_server_request_duration_seconds_count"
            }
            assert len(series) <= SERIES + 1
            assert onlooker.losses() == {}
            assert " ERROR " not in onlooker.log()
            agent.wait_until(
                lambda: _read(onlooker, "onlooker_instrumented_processes") == 1, "only the server is left", 15, 0.5
            )
    assert grown < GROWTH_BYTES


def _read(onlooker: agent.Agent, name: str) -> float:
    """Sum over the series of a metric, by its lines alone: a parser takes seconds for thousands of series."""
    text = onlooker.get("/metrics")[2]
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def _settled(onlooker: agent.Agent, asked: int) -> None:
    counted = 0.0

    def all_counted() -> bool:
        nonlocal counted
        counted = _read(onlooker, "http_server_request_duration_seconds_count")
        return counted == asked

    try:
        agent.wait_until(all_counted, "", 60, 0.5)
    except agent.AgentFailure:
        pytest.fail(f"{counted:.0f} of {asked} requests counted; lost: {onlooker.losses()}")


def _many_paths(port: int, count: int, name: str) -> int:
    """One after the other: pipelined ones, whose halves are joined row by row, can come faster than that goes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for i in range(count):
            connection.sendall(f"GET /items/{name}{i} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    return count


def _many_processes(directory: object, port: int) -> int:
    """Short-lived processes, each with a request of its own.

    They read the answer themselves: what another program read in their place would be bytes that nobody saw.
    """
    script = f"""
        n=0
        while [ $n -lt {PROCESSES} ]; do
            exec 3<>/dev/tcp/127.0.0.1/{port}
            bash -c 'printf "GET /items/process%s HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n" $1 >&3
                     while read -r line <&3; do :; done' {directory}/one $n
            exec 3>&-
            n=$((n + 1))
        done
    """
    subprocess.run(["bash", "-c", script, f"{directory}/all"], check=True, timeout=120)
    return PROCESSES


def _many_connections(port: int) -> int:
    """All of them open at the same time, in groups that the limit of descriptors allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CONNECTIONS + 1000), hard))
    group = min(min(hard, CONNECTIONS + 1000) - 500, 1000)  # a thread each in the server
    try:
        for first in range(0, CONNECTIONS, group):
            held = []
            for i in range(first, min(first + group, CONNECTIONS)):
                connection = socket.create_connection(("127.0.0.1", port))
                connection.sendall(f"GET /items/connection{i} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                held.append(connection)
            for connection in held:
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS
