"""So many requests a second, not more, over kept connections, and how many were sent and answered.

    python -m support.paced_load PORT RATE SECONDS

The paths name many users and orders, some fail, some are slow: what a store has to choose from.
"""

from __future__ import annotations

import json
import socket
import sys
import time

TICK_S = 0.02
_FIELDS = b" HTTP/1.1\r\nHost: load.example\r\nAccept: */*\r\n\r\n"


def target(number: int) -> bytes:
    """The path of a request: most of one kind, one of a hundred fails, one of a thousand is not there."""
    if number % 1000 == 7:
        return b"/nothing/%d" % (number % 5000)
    if number % 100 == 3:
        return b"/failing/%d" % (number % 300)
    if number % 4 == 0:
        return b"/users/%d" % (number % 100_000)
    return b"/orders/%d/items?page=%d" % (number % 20_000, number % 7)


def run(port: int, rate: float, seconds: float) -> dict[str, float]:
    """Send them; each tick has its share, all of it in flight at once."""
    share = max(round(rate * TICK_S), 1)
    connections = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(share)]
    for one in connections:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent, late = 0, 0.0
    began = due = time.monotonic()
    while due - began < seconds:
        for one in connections:
            one.sendall(b"GET " + target(sent) + _FIELDS)
            sent += 1
        for one in connections:
            head = one.recv(4096)
            if not head.startswith(b"HTTP/1.1 ") or b"Content-Length: 3\r\n" not in head or not head.endswith(b"ok\n"):
                raise RuntimeError(f"not the whole answer: {head!r}")
        due += TICK_S
        pause = due - time.monotonic()
        late = max(late, -pause)
        if pause > 0:
            time.sleep(pause)
        elif pause < -30.0:  # the machine stood still: do not make up for all of it
            due = time.monotonic()
    took = time.monotonic() - began
    for one in connections:
        one.close()
    return {"sent": sent, "seconds": round(took, 3), "rate": round(sent / took, 1), "late_s": round(late, 3)}


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))))
