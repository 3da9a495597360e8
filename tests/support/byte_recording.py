"""A TCP proxy on loopback that writes down what passes, call by call, in order."""

from __future__ import annotations

import base64
import json
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Capture:
    """One connection: chunks in order, each ``(from_client, mono_ns since the first, bytes)``."""

    chunks: list[tuple[bool, int, bytes]] = field(default_factory=list)

    def bytes_of(self, from_client: bool) -> bytes:
        return b"".join(data for side, _, data in self.chunks if side == from_client)

    def save(self, path: Path, what: str) -> None:
        lines = [[("s", "c")[side], at // 1000, base64.b64encode(data).decode()] for side, at, data in self.chunks]
        text = ",\n".join(json.dumps(line, separators=(",", ":")) for line in lines)
        path.write_text(f'{{"what":{json.dumps(what)},"columns":["side","us","base64"],"chunks":[\n{text}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Capture:
        chunks = json.loads(path.read_text())["chunks"]
        return cls([(side == "c", us * 1000, base64.b64decode(data)) for side, us, data in chunks])


class Proxy:
    """Forwards one port to another; one `Capture` a connection in ``captures``."""

    def __init__(self, target_port: int) -> None:
        self.captures: list[Capture] = []
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            capture = Capture()
            self.captures.append(capture)
            thread = threading.Thread(target=self._forward, args=(client, capture), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _forward(self, client: socket.socket, capture: Capture) -> None:
        begin = time.monotonic_ns()
        with client, socket.create_connection(self._target) as server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, (True, server))
            selector.register(server, selectors.EVENT_READ, (False, client))
            while True:
                for key, _ in selector.select():
                    from_client, other = key.data
                    try:
                        data = key.fileobj.recv(65_536)
                        if not data:
                            return
                        capture.chunks.append((from_client, time.monotonic_ns() - begin, data))
                        other.sendall(data)
                    except OSError:
                        return

    def close(self) -> list[Capture]:
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
        return self.captures
