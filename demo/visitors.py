"""Visitors of the demo shop: a steady, varied traffic, some of it slow or failing.

Each visitor walks through the shop at its own pace; most keep their connection, some open a fresh one for every
request.  About 30 requests a second in all.
"""

import http.client
import json
import os
import random
import signal
import sys
import threading
import time

HOST, PORT = "127.0.0.1", int(os.environ["GATEWAY_PORT"])
CATEGORIES = ("lamp", "chair", "table", "shelf", "clock")


def walk(chance):
    """One request after the other: method, target, body."""
    while True:
        yield "GET", "/", None
        yield "GET", f"/products?category={chance.choice(CATEGORIES)}&session={chance.randrange(10**9)}", None
        for _ in range(chance.randrange(1, 5)):
            yield "GET", f"/products/{chance.randrange(1, 210)}", None  # those above 200 do not exist
        if chance.random() < 0.5:
            cart = chance.randrange(10_000, 99_999)
            items = [{"item": chance.randrange(1, 200), "quantity": chance.randrange(1, 4)} for _ in range(2)]
            for item in items:
                yield "POST", f"/cart/{cart}/items", item
            for _ in range(2 if chance.random() < 0.1 else 1):  # some press the button twice
                yield "POST", "/orders", {"cart": cart, "items": items}
        if chance.random() < 0.08:
            yield "GET", "/reports/sales", None
        if chance.random() < 0.05:
            yield "GET", chance.choice(("/favicon.ico", "/wp-login.php", "/robots.txt")), None


class Visitor(threading.Thread):
    """One visitor; counts what came back."""

    def __init__(self, number, *, keeps_connection):
        super().__init__(name=f"visitor-{number}", daemon=True)
        self.chance = random.Random(number)  # the same walks in every run
        self.keeps_connection = keeps_connection
        self.statuses = {}

    def run(self):
        connection = None
        for method, target, body in walk(self.chance):
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(HOST, PORT, timeout=10)
                payload = None if body is None else json.dumps(body)
                headers = {"Content-Type": "application/json"} if payload else {}
                connection.request(method, target, payload, headers)
                response = connection.getresponse()
                response.read()
                outcome = response.status
            except (OSError, http.client.HTTPException) as err:
                outcome = type(err).__name__
            self.statuses[outcome] = self.statuses.get(outcome, 0) + 1
            if connection is not None and (not self.keeps_connection or not isinstance(outcome, int)):
                connection.close()
                connection = None
            time.sleep(self.chance.expovariate(1 / 0.15))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    visitors = [Visitor(number, keeps_connection=number % 3 > 0) for number in range(6)]
    for visitor in visitors:
        visitor.start()
    while True:
        time.sleep(10)
        total = {}
        for visitor in visitors:
            for outcome, count in list(visitor.statuses.items()):
                total[outcome] = total.get(outcome, 0) + count
        known = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(total.items(), key=str))
        print(f"{sum(total.values())} requests so far ({known})", flush=True)


if __name__ == "__main__":
    main()
