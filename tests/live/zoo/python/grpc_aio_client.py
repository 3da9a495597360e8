"""A gRPC client on asyncio, one channel for all calls.  grpc_aio_client.py PORT PLAN CONCURRENCY"""

import asyncio
import sys

import grpc
import grpc.aio
from _grpc_plan import PORT, methods, plan

PLAN = plan()


async def carry_out(call, stubs):
    """Make one call; give back its code and how many messages came."""
    stub = stubs[call.kind]
    call.start()
    options = {"timeout": call.timeout, "metadata": call.metadata}
    came = 0
    asks = call.message if call.kind in ("Unary", "Nowhere", "Listen") else iter(call.messages)
    running = stub(asks, **options)
    if call.cancel_s:
        asyncio.get_running_loop().call_later(call.cancel_s, running.cancel)
    try:
        if call.kind in ("Listen", "Talk"):
            async for _ in running:
                came += 1
        else:
            await running
            came = 1
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED, came
    except grpc.RpcError as error:
        return error.code(), came
    return await running.code(), came


async def main():
    async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        stubs = methods(channel)
        lines = []

        async def work(calls):
            for call in calls:
                line = call.truth(*await carry_out(call, stubs))
                lines.append(line)

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        count = int(sys.argv[3])
        await asyncio.gather(*(work(PLAN[i::count]) for i in range(count)))
    print("\n".join(lines))


asyncio.run(main())
