"""So many Redis commands a second, not more, each by itself on the next of several connections.

    python benchmarks/paced_redis.py PORT RATE OPERATIONS

redis-benchmark knows full speed only. SET and GET take turns; a reply is read when its connection is due again, so that
nothing waits for the server. Prints how many operations it was and how long they took, as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import time

CONNECTIONS = 32
GROUP = 4
"""Commands at a time: a pause for each is more than one client can do."""

BEHIND_S = 0.25
"""So late, the time that was lost (the machine stood still) is not made up for."""


def command(*words: bytes) -> bytes:
    """As clients frame it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def run(port: int, rate: float, operations: int) -> dict[str, float]:
    """Send them.

    Raises:
        RuntimeError: the server did not answer as Redis does.
    """
    keys = [b"key:%012d" % number for number in range(1000)]
    asked = [command(b"SET", key, b"xxx") if number % 2 else command(b"GET", key) for number, key in enumerate(keys)]
    connections = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(CONNECTIONS)]
    for one in connections:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began = due = time.monotonic()
    for number in range(operations):
        one = connections[number % CONNECTIONS]
        if number >= CONNECTIONS and one.recv(256)[:1] not in (b"+", b"$"):
            raise RuntimeError("no reply of Redis")
        one.sendall(asked[(number + number // CONNECTIONS) % len(asked)])  # both kinds on each connection
        due += 1 / rate
        if number % GROUP:
            continue
        pause = due - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        elif pause < -BEHIND_S:
            due = time.monotonic()
    for one in connections[: min(operations, CONNECTIONS)]:
        one.recv(256)
    took = time.monotonic() - began
    for one in connections:
        one.close()
    return {"operations": operations, "seconds": took}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))))
