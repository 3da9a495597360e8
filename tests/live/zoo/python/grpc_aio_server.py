"""A gRPC server on asyncio, without generated code.  grpc_aio_server.py PORT"""

import asyncio

import grpc
import grpc.aio
from _grpc_plan import PORT, SERVICE, Wish


async def finish(wish, context):
    await asyncio.sleep(wish.delay_s)
    if wish.status is not grpc.StatusCode.OK:
        await context.abort(wish.status, "as asked")


async def unary(request, context):
    wish = Wish(context.invocation_metadata())
    await finish(wish, context)
    return wish.message


async def collect(requests, context):
    wish = Wish(context.invocation_metadata())
    async for _ in requests:
        pass
    await finish(wish, context)
    return wish.message


async def listen(request, context):
    wish = Wish(context.invocation_metadata())
    for _ in range(wish.responses):
        yield wish.message
    await finish(wish, context)


async def talk(requests, context):
    wish = Wish(context.invocation_metadata())
    async for _ in requests:
        yield wish.message
    await finish(wish, context)


async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    "Unary": grpc.unary_unary_rpc_method_handler(unary),
                    "Collect": grpc.stream_unary_rpc_method_handler(collect),
                    "Listen": grpc.unary_stream_rpc_method_handler(listen),
                    "Talk": grpc.stream_stream_rpc_method_handler(talk),
                },
            ),
        )
    )
    server.add_insecure_port(f"127.0.0.1:{PORT}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
