"""requests: a session a connection."""

import time

import requests
from _plan import BASE, CA, FRESH, HEADERS, pieces, record, run_threads


def body_of(method, body_bytes, chunked):
    if method != "POST":
        return None
    return pieces(body_bytes) if chunked else b"x" * body_bytes


def work(planned_requests):
    session = requests.Session()
    session.trust_env = False
    session.verify = CA or True
    for planned in planned_requests:
        _, method, path, body_bytes, chunked = planned
        data = body_of(method, body_bytes, chunked)
        start_ns = time.monotonic_ns()
        try:
            response = session.request(method, BASE + path, data=data, headers=HEADERS, timeout=60)
            record(planned, start_ns, response.status_code, response.content)
        except requests.RequestException as error:
            record(planned, start_ns, 0, b"", str(error))
        if FRESH:
            session.close()


run_threads(work)
