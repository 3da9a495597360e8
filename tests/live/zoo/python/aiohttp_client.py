"""aiohttp: one session, as many tasks as connections."""

import asyncio
import time

import aiohttp
from _plan import (
    BASE,
    CONNECTIONS,
    FRESH,
    HEADERS,
    PLAN,
    async_pieces,
    print_truth,
    record,
    tls_context,
    wait_for_start,
)


async def work(session, planned_requests):
    for planned in planned_requests:
        _, method, path, body_bytes, chunked = planned
        data = None if method != "POST" else async_pieces(body_bytes) if chunked else b"x" * body_bytes
        start_ns = time.monotonic_ns()
        try:
            async with session.request(method, BASE + path, data=data) as response:
                record(planned, start_ns, response.status, await response.read())
        except aiohttp.ClientError as error:
            record(planned, start_ns, 0, b"", str(error))


async def main():
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, force_close=FRESH, ssl=tls_context() or True)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:
        await asyncio.gather(*(work(session, PLAN[i::CONNECTIONS]) for i in range(CONNECTIONS)))


wait_for_start()
asyncio.run(main())
print_truth()
