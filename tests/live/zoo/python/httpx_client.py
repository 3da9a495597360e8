"""httpx: a client a connection."""

import os
import time

import httpx
from _plan import BASE, HEADERS, pieces, record, run_threads, tls_context

HTTP2 = bool(os.environ.get("ZOO_HTTP2"))


def work(planned_requests):
    with httpx.Client(
        base_url=BASE,
        headers=HEADERS,
        timeout=60,
        trust_env=False,
        verify=tls_context() or True,
        http2=HTTP2,
        http1=not HTTP2,
    ) as client:
        for planned in planned_requests:
            _, method, path, body_bytes, chunked = planned
            content = None if method != "POST" else pieces(body_bytes) if chunked else b"x" * body_bytes
            start_ns = time.monotonic_ns()
            try:
                response = client.request(method, path, content=content)
                record(planned, start_ns, response.status_code, response.content)
            except httpx.HTTPError as error:
                record(planned, start_ns, 0, b"", str(error))


run_threads(work)
