"""urllib3: a pool of one connection a worker."""

import time

import urllib3
from _plan import CA, FRESH, HEADERS, PORT, pieces, record, run_threads


def new_pool():
    if CA:
        return urllib3.HTTPSConnectionPool("127.0.0.1", PORT, maxsize=1, retries=False, timeout=60, ca_certs=CA)
    return urllib3.HTTPConnectionPool("127.0.0.1", PORT, maxsize=1, retries=False, timeout=60)


def work(planned_requests):
    pool = new_pool()
    for planned in planned_requests:
        _, method, path, body_bytes, chunked = planned
        body = None if method != "POST" else pieces(body_bytes) if chunked else b"x" * body_bytes
        start_ns = time.monotonic_ns()
        try:
            response = pool.urlopen(method, path, body=body, headers=HEADERS, chunked=chunked)
            record(planned, start_ns, response.status, response.data)
        except urllib3.exceptions.HTTPError as error:
            record(planned, start_ns, 0, b"", str(error))
        if FRESH:
            pool.close()  # a server need not say that it will close
            pool = new_pool()
    pool.close()


run_threads(work)
