"""A steady load that looks at every byte of every answer: ``python -m support.steady_load PORT CONNECTIONS``.

Asks for a page, posts a body and reads it back, over kept and fresh connections, until a line comes on standard input;
then prints ``{"requests": n, "faults": [...]}``.  Every page has to equal the first one, and every echo its body.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import sys
import threading

PAGE = "/big/20000/steady"


def _one(
    port: int, number: int, over: threading.Event, counts: list[int], faults: list[str], first: dict[str, str]
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    turn = 0
    while not over.is_set():
        turn += 1
        body = f"{number}-{turn}-".encode() * (turn % 50 + 1)
        what = "echo" if turn % 3 == 0 else "page"
        try:
            if what == "echo":
                connection.request("POST", f"/echo/{number}-{turn}", body)
            else:
                connection.request("GET", PAGE)
            answer = connection.getresponse()
            data = answer.read()
        except OSError as err:
            faults.append(f"{what} {number}-{turn}: {err!r}")
            connection.close()
            continue
        finally:
            counts[number] += 1
        digest = hashlib.sha256(data).hexdigest()
        if answer.status != 200 or (data != body if what == "echo" else digest != first.setdefault("page", digest)):
            faults.append(f"{what} {number}-{turn}: status {answer.status}, {len(data)} bytes that differ")
        if turn % 100 == 0:
            connection.close()  # and a fresh one
    connection.close()


def main() -> None:
    port, connections = int(sys.argv[1]), int(sys.argv[2])
    counts, faults, first, over = [0] * connections, list[str](), dict[str, str](), threading.Event()
    threads = [
        threading.Thread(target=_one, args=(port, number, over, counts, faults, first)) for number in range(connections)
    ]
    for thread in threads:
        thread.start()
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.readline()
    over.set()
    for thread in threads:
        thread.join(100)
    print(json.dumps({"requests": sum(counts), "faults": faults[:20], "fault_count": len(faults)}), flush=True)


if __name__ == "__main__":
    main()
