"""A gRPC server on threads, without generated code.  grpc_server.py PORT"""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from _grpc_plan import PORT, SERVICE, Wish


def finish(wish, context):
    time.sleep(wish.delay_s)
    if wish.status is not grpc.StatusCode.OK:
        context.abort(wish.status, "as asked")


def unary(request, context):
    wish = Wish(context.invocation_metadata())
    finish(wish, context)
    return wish.message


def collect(requests, context):
    wish = Wish(context.invocation_metadata())
    for _ in requests:
        pass
    finish(wish, context)
    return wish.message


def listen(request, context):
    wish = Wish(context.invocation_metadata())
    for _ in range(wish.responses):
        yield wish.message
    finish(wish, context)


def talk(requests, context):
    wish = Wish(context.invocation_metadata())
    for _ in requests:
        yield wish.message
    finish(wish, context)


server = grpc.server(ThreadPoolExecutor(16))
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
server.start()
server.wait_for_termination()
