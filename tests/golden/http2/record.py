"""Record the captures beside this file from real clients and servers; run by hand, then review the difference.

Needs curl, h2load, nghttpd, nginx, node and go, and a Python with grpcio, httpx[http2] and hypercorn in ``--python``.
Writes one ``NAME.capture.json`` a recording; ``tests/unit/protocols/test_http2_golden.py`` reads them.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from support.byte_recording import Capture, Proxy  # noqa: E402  # needs the path above

NODE_SERVER = """
const http2 = require('http2');
const server = http2.createServer();
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  const path = headers[':path'];
  if (path === '/reset') { stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR); return; }
  if (path === '/refused') { stream.close(http2.constants.NGHTTP2_REFUSED_STREAM); return; }
  if (path === '/early') stream.additionalHeaders({':status': 103, 'link': '</a.css>; rel=preload'});
  if (path === '/trailers') {
    stream.respond({':status': 200}, {waitForTrailers: true});
    stream.on('wantTrailers', () => stream.sendTrailers({'x-sum': '1'}));
    stream.end('body'); return;
  }
  stream.respond({':status': path.startsWith('/bad') ? 500 : 200, 'content-type': 'text/plain'});
  stream.end('hello ' + path);
});
server.listen(PORT, '127.0.0.1');
"""
NODE_CLIENT = """
const http2 = require('http2');
const session = http2.connect('http://127.0.0.1:PORT', {settings: {headerTableSize: TABLE}});
const paths = ['/a', '/bad?x=1', '/reset', '/early', '/trailers', '/refused', '/b?token=t', '/a', '/post'];
let left = paths.length;
const done = () => { if (--left === 0) session.close(); };
for (const path of paths) {
  const method = path === '/post' ? 'POST' : 'GET';
  const request = session.request({':path': path, ':method': method,
    'traceparent': '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'});
  request.on('error', () => {}); request.on('close', done); request.resume();
  request.end(method === 'POST' ? 'x'.repeat(3000) : undefined);
}
"""
GO_MAIN = """
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

func main() {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	if os.Args[1] == "server" {
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if strings.HasPrefix(r.URL.Path, "/missing") {
				http.NotFound(w, r)
				return
			}
			fmt.Fprint(w, strings.Repeat("x", 200))
		})
		server := &http.Server{Addr: "127.0.0.1:" + os.Args[2], Handler: mux, Protocols: &protocols}
		panic(server.ListenAndServe())
	}
	client := &http.Client{Transport: &http.Transport{Protocols: &protocols}}
	var group sync.WaitGroup
	for i := 0; i < 12; i++ {
		if i == 1 {
			group.Wait()
		}
		group.Add(1)
		go func() {
			defer group.Done()
			path := []string{"/items/", "/missing/"}[i%2]
			body := strings.NewReader(strings.Repeat("b", i*10))
			request, _ := http.NewRequest("PUT", fmt.Sprintf("http://127.0.0.1:%s%s%d", os.Args[2], path, i), body)
			request.Header.Set("X-Long", strings.Repeat("long", 10+i/11*4200))
			response, err := client.Do(request)
			if err != nil {
				panic(err)
			}
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}()
	}
	group.Wait()
}
"""
GRPC_COMMON = """
import asyncio, sys, time
import grpc
raw = lambda b: b
PORT = sys.argv[1]
def many(n): return (b'm%d' % i for i in range(n))
"""
GRPC_SERVER = (
    GRPC_COMMON
    + """
from concurrent import futures
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rpartition('/')[2]
        if name == 'Unary': return grpc.unary_unary_rpc_method_handler(lambda m, c: b'pong', raw, raw)
        if name == 'Big': return grpc.unary_unary_rpc_method_handler(lambda m, c: b'z' * 17000, raw, raw)
        if name == 'NotFound': return grpc.unary_unary_rpc_method_handler(
            lambda m, c: c.abort(grpc.StatusCode.NOT_FOUND, 'none'), raw, raw)
        if name == 'Internal': return grpc.unary_unary_rpc_method_handler(
            lambda m, c: c.abort(grpc.StatusCode.INTERNAL, 'broken'), raw, raw)
        if name == 'Slow': return grpc.unary_unary_rpc_method_handler(lambda m, c: time.sleep(0.6) or b'', raw, raw)
        if name == 'Down': return grpc.unary_stream_rpc_method_handler(lambda m, c: many(7), raw, raw)
        if name == 'Endless': return grpc.unary_stream_rpc_method_handler(self.endless, raw, raw)
        if name == 'Up': return grpc.stream_unary_rpc_method_handler(lambda ms, c: b'%d' % len(list(ms)), raw, raw)
        if name == 'Chat': return grpc.stream_stream_rpc_method_handler(lambda ms, c: (m for m in ms), raw, raw)
        return None
    def endless(self, message, context):
        while context.is_active():
            yield b'more'
            time.sleep(0.02)
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Handler(),))
assert server.add_insecure_port('127.0.0.1:' + PORT)
server.start()
server.wait_for_termination()
"""
)
GRPC_CLIENT = (
    GRPC_COMMON
    + """
with grpc.insecure_channel('127.0.0.1:' + PORT) as channel:
    def call(kind, name, argument, timeout=None):
        method = getattr(channel, kind)('/shop.v1.Orders/' + name, raw, raw)
        try:
            result = method(argument, timeout=timeout, metadata=(
                ('traceparent', '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'),))
            return list(result) if kind.endswith('_stream') else result
        except grpc.RpcError as error:
            return error.code()
    for _ in range(3): call('unary_unary', 'Unary', b'ping')
    call('unary_unary', 'Big', b'q' * 300)
    call('unary_unary', 'NotFound', b'')
    call('unary_unary', 'Internal', b'')
    call('unary_unary', 'Nowhere', b'')
    call('unary_unary', 'Slow', b'', timeout=0.2)
    call('unary_stream', 'Down', b'')
    call('stream_unary', 'Up', many(5))
    call('stream_stream', 'Chat', many(4))
    stream = channel.unary_stream('/shop.v1.Orders/Endless', raw, raw)(b'')
    next(stream); next(stream); stream.cancel(); time.sleep(0.1)
"""
)
GRPC_AIO_SERVER = (
    GRPC_COMMON
    + """
async def unary(message, context): return message * 2
async def down(message, context):
    for i in range(3): yield b'%d' % i
async def failing(message, context): await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, 'later')
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        name = details.method.rpartition('/')[2]
        if name == 'Unary': return grpc.unary_unary_rpc_method_handler(unary, raw, raw)
        if name == 'Failing': return grpc.unary_unary_rpc_method_handler(failing, raw, raw)
        return grpc.unary_stream_rpc_method_handler(down, raw, raw)
async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port('127.0.0.1:' + PORT)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""
)
GRPC_AIO_CLIENT = (
    GRPC_COMMON
    + """
async def main():
    async with grpc.aio.insecure_channel('127.0.0.1:' + PORT) as channel:
        unary = channel.unary_unary('/a.B/Unary', raw, raw)
        await asyncio.gather(*(unary(b'%d' % i) for i in range(10)))
        try: await channel.unary_unary('/a.B/Failing', raw, raw)(b'')
        except grpc.RpcError: pass
        async for _ in channel.unary_stream('/a.B/Down', raw, raw)(b''): pass
asyncio.run(main())
"""
)
HTTPX_CLIENT = """
import asyncio, sys, httpx
async def main():
    async with httpx.AsyncClient(http1=False, http2=True, base_url='http://127.0.0.1:' + sys.argv[1]) as client:
        await asyncio.gather(*(client.get('/r/%d' % i) for i in range(8)))
        await client.post('/fail', content=b'x' * 100)
asyncio.run(main())
"""
ASGI_APP = """
async def app(scope, receive, send):
    if scope['type'] != 'http': return
    status = 503 if scope['path'] == '/fail' else 200
    await send({'type': 'http.response.start', 'status': status, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': b'hello'})
"""
NGINX_CONF = """
daemon off; master_process off; pid nginx.pid; error_log stderr crit; worker_processes 1;
events {}
http { access_log off;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server { listen 127.0.0.1:PORT http2;
    location /ok { return 200 "fine"; } location /gone { return 410; } location /down { return 503; }
    location /post { return 204; } } }
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def record(name: str, what: str, server: Callable[[int], list[str]], client: Callable[[int], list[str]]) -> None:
    port = free_port()
    process = subprocess.Popen(server(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        proxy = Proxy(port)
        subprocess.run(client(proxy.port), check=True, timeout=60, stdout=subprocess.DEVNULL)
        captures = [capture for capture in proxy.close() if capture.chunks]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    biggest: Capture = max(captures, key=lambda capture: len(capture.chunks))
    biggest.save(HERE / f"{name}.capture.json", what)
    print(name, len(captures), "connections;", sum(len(data) for _, _, data in biggest.chunks), "bytes kept")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--python", default=sys.executable)
    arguments.add_argument("only", nargs="*")
    options = arguments.parse_args()
    python = options.python
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)

        def script(name: str, text: str, **values: object) -> str:
            text = textwrap.dedent(text)
            for key, value in values.items():
                text = text.replace(key, str(value))
            Path(name).write_text(text)
            return name

        def nginx(port: int) -> list[str]:
            return ["nginx", "-p", scratch, "-c", str(Path(script("nginx.conf", NGINX_CONF, PORT=port)).resolve())]

        def nghttp(port: int) -> list[str]:
            base = f"http://127.0.0.1:{port}"
            urls = [
                f"{base}/ok?a=b&token=secret",
                f"{base}/gone",
                f"{base}/down",
                f"{base}/ok/%C3%A9",
                f"{base}/nothing",
            ]
            return ["nghttp", "-n", *urls]

        def curl(port: int) -> list[str]:
            # One URL: curl 7.88 fails on the second request of a connection without TLS.
            return ["curl", "-s", "--http2-prior-knowledge", "-d", "name=value", f"http://127.0.0.1:{port}/post"]

        def hypercorn(port: int) -> list[str]:
            script("asgi_app.py", ASGI_APP)
            return [python, "-m", "hypercorn", "-b", f"127.0.0.1:{port}", "asgi_app:app"]

        def go(role: str) -> Callable[[int], list[str]]:
            if not Path("h2go").exists():
                script("main.go", GO_MAIN)
                subprocess.run(["go", "build", "-o", "h2go", "main.go"], check=True)
            return lambda port: [f"{scratch}/h2go", role, str(port)]

        Path("index.html").write_text("<p>hello</p>\n")
        recordings: dict[str, Callable[[str], None]] = {
            "curl_nginx": lambda name: record(name, "curl to nginx, prior knowledge", nginx, curl),
            "nghttp_nginx": lambda name: record(name, "nghttp to nginx, with priorities", nginx, nghttp),
            "upgrade_hypercorn": lambda name: record(
                name, "nghttp to hypercorn, upgraded from HTTP/1.1", hypercorn,
                lambda port: ["nghttp", "-n", "-u", f"http://127.0.0.1:{port}/up?x=1", f"http://127.0.0.1:{port}/fail"],
            ),
            "httpx_hypercorn": lambda name: record(
                name, "httpx to hypercorn", hypercorn,
                lambda port: [python, script("client.py", HTTPX_CLIENT), str(port)],
            ),
            "h2load_nghttpd": lambda name: record(
                name, "h2load to nghttpd, 100 streams at once",
                lambda port: ["nghttpd", "--no-tls", "-d", scratch, "-a", "127.0.0.1", str(port)],
                lambda port: ["h2load", "-n", "120", "-c", "1", "-m", "100", f"http://127.0.0.1:{port}/index.html",
                              f"http://127.0.0.1:{port}/absent"],
            ),
            "node": lambda name: record(
                name, "node to node: resets, interim responses, trailers",
                lambda port: ["node", script("server.js", NODE_SERVER, PORT=port)],
                lambda port: ["node", script("client.js", NODE_CLIENT, PORT=port, TABLE=4096)],
            ),
            "node_table_0": lambda name: record(
                name, "node to node without a dynamic table for responses",
                lambda port: ["node", script("server.js", NODE_SERVER, PORT=port)],
                lambda port: ["node", script("client.js", NODE_CLIENT, PORT=port, TABLE=0)],
            ),
            "node_table_64k": lambda name: record(
                name, "node to node with a table of 65,536 bytes for responses",
                lambda port: ["node", script("server.js", NODE_SERVER, PORT=port)],
                lambda port: ["node", script("client.js", NODE_CLIENT, PORT=port, TABLE=65536)],
            ),
            "go": lambda name: record(name, "Go to Go: headers of up to 16 KB", go("server"), go("client")),
            "grpc_python": lambda name: record(
                name, "grpcio: unary and streaming, ok and failing, a deadline and a cancel",
                lambda port: [python, script("server.py", GRPC_SERVER), str(port)],
                lambda port: [python, script("client.py", GRPC_CLIENT), str(port)],
            ),
            "grpc_aio": lambda name: record(
                name, "grpc.aio: ten calls at once, a failure, a stream",
                lambda port: [python, script("server.py", GRPC_AIO_SERVER), str(port)],
                lambda port: [python, script("client.py", GRPC_AIO_CLIENT), str(port)],
            ),
        }  # fmt: skip
        for name, run in recordings.items():
            if not options.only or name in options.only:
                run(name)


if __name__ == "__main__":
    main()
