"""The standard library's threading HTTP server.  http_server.py PORT."""

import http.server
import os
import socket
import ssl
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body leave in two writes

    def log_message(self, format, *args):
        pass

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        body = self.body()
        match self.path.split("/")[1:]:
            case ["items", *rest]:
                self.answer(200, b'{"item": "%s"}\n' % "/".join(rest).encode())
            case ["fail", *_]:
                self.answer(500, b"failed\n")
            case ["echo", *_]:
                self.answer(200, body)
            case ["sleep", ms, *_]:
                time.sleep(int(ms) / 1000)
                self.answer(200, b"slept\n")
            case ["big", size, *_]:
                self.answer(200, b"x" * int(size))
            case ["stream", *_]:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in range(5):
                    text = f"piece {piece}\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
                    time.sleep(0.001)
                self.wfile.write(b"0\r\n\r\n")
            case _:
                self.answer(404, b"no such page\n")

    do_POST = do_GET


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().server_bind()


server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
if certificate := os.environ.get("ZOO_TLS_CERTIFICATE"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, os.environ["ZOO_TLS_KEY"])
    # the handshake is the handler's own affair: the thread that accepts must not wait for it
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening", server.server_address[1], flush=True)
server.serve_forever()
