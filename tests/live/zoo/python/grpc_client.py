"""A gRPC client on threads, one channel for all calls.  grpc_client.py PORT PLAN CONCURRENCY"""

import sys
import threading

import grpc
from _grpc_plan import CA, PORT, methods, plan

PLAN = plan()


def carry_out(call, stubs):
    """Make one call; give back its code and how many messages came."""
    stub = stubs[call.kind]
    call.start()
    options = {"timeout": call.timeout, "metadata": call.metadata}
    came = 0
    timer = None
    try:
        if call.kind in ("Unary", "Nowhere"):
            running = stub.future(call.message, **options)
        elif call.kind == "Collect":
            running = stub.future(iter(call.messages), **options)
        elif call.kind == "Listen":
            running = stub(call.message, **options)
        else:
            running = stub(iter(call.messages), **options)
        if call.cancel_s:
            timer = threading.Timer(call.cancel_s, running.cancel)
            timer.start()
        if call.kind in ("Listen", "Talk"):
            for _ in running:
                came += 1
        else:
            running.result()
            came = 1
        return running.code(), came
    except grpc.FutureCancelledError:
        return grpc.StatusCode.CANCELLED, came
    except grpc.RpcError as error:
        return error.code(), came
    finally:
        if timer is not None:
            timer.cancel()


def main():
    if CA:
        with open(CA, "rb") as roots:
            channel = grpc.secure_channel(f"127.0.0.1:{PORT}", grpc.ssl_channel_credentials(roots.read()))
    else:
        channel = grpc.insecure_channel(f"127.0.0.1:{PORT}")
    stubs = methods(channel)
    lines = []

    def work(calls):
        lines.extend(call.truth(*carry_out(call, stubs)) for call in calls)

    print("ready", flush=True)
    sys.stdin.readline()
    count = int(sys.argv[3])
    threads = [threading.Thread(target=work, args=(PLAN[i::count],)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    channel.close()
    print("\n".join(lines))


main()
