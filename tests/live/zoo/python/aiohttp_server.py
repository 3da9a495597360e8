"""An aiohttp server.  aiohttp_server.py PORT."""

import asyncio
import os
import ssl
import sys

from aiohttp import web

routes = web.RouteTableDef()


@routes.get("/items/{item:.*}")
async def items(request):
    return web.json_response({"item": request.match_info["item"]})


@routes.get("/fail/{_:.*}")
async def fail(request):
    return web.Response(text="failed\n", status=500)


@routes.post("/echo/{_:.*}")
async def echo(request):
    return web.Response(body=await request.read())


@routes.get("/sleep/{ms}/{_:.*}")
async def sleep(request):
    await asyncio.sleep(int(request.match_info["ms"]) / 1000)
    return web.Response(text="slept\n")


@routes.get("/big/{size}/{_:.*}")
async def big(request):
    return web.Response(body=b"x" * int(request.match_info["size"]))


@routes.get("/stream/{_:.*}")
async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for piece in range(5):
        await response.write(f"piece {piece}\n".encode())
        await asyncio.sleep(0.001)
    await response.write_eof()
    return response


async def announce(app):
    print("listening", sys.argv[1], flush=True)


application = web.Application(client_max_size=64 << 20)
application.add_routes(routes)
application.on_startup.append(announce)
context = None
if certificate := os.environ.get("ZOO_TLS_CERTIFICATE"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, os.environ["ZOO_TLS_KEY"])
web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), print=None, backlog=512, ssl_context=context)
