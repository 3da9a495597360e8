"""The zoo speaking HTTP/2: by prior knowledge, upgraded from HTTP/1.1, and inside TLS.

    with zoo.server(zoo_http2.SERVERS["nginx"]) as server, zoo.client(zoo_http2.client("go"), ...) as client:
        made = client.run()

Each client uses one connection for all of its streams, but ``h2load``, which uses as many as it is told.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from support import zoo, zoo_tls
from support.truth import PlannedRequest
from support.zoo import PYTHON, VENV, ClientSpec, Place, ServerSpec

Programs = zoo_tls.Programs
TOLD = ("env", "ZOO_HTTP2=1")


def _told(programs: Programs) -> Programs:
    return lambda place: {name: [*TOLD, *command] for name, command in programs(place).items()}


def _nginx(place: Place) -> Mapping[str, Sequence[str]]:
    return zoo._nginx(place, TLS=" http2")


def _nginx_tls(place: Place) -> Mapping[str, Sequence[str]]:
    made, key = zoo_tls.certificate()
    return zoo._nginx(place, TLS=f" ssl http2;\n        ssl_certificate {made};\n        ssl_certificate_key {key}")


def _hypercorn(*options: str) -> Programs:
    def programs(place: Place) -> Mapping[str, Sequence[str]]:
        command = [str(VENV / "hypercorn"), "fastapi_app:app", "--bind", f"127.0.0.1:{place.port}", *options]
        command += ["--workers", "0"]  # in the process itself
        return {"hypercorn": ["env", f"PYTHONPATH={zoo._script('python')}", PYTHON, *command]}

    return programs


def _hypercorn_tls(place: Place) -> Mapping[str, Sequence[str]]:
    made, key = zoo_tls.certificate()
    return _hypercorn("--certfile", str(made), "--keyfile", str(key))(place)


def _node(*environment: str) -> Programs:
    def programs(place: Place) -> Mapping[str, Sequence[str]]:
        return {"node": ["env", *environment, "node", zoo._script("node/http2_server.js"), str(place.port)]}

    return programs


NGINX, GO, RUST = (zoo.SERVERS[name] for name in ("nginx", "go-net-http", "rust-hyper"))
HYPERCORN = ServerSpec("hypercorn-h2", "python", _hypercorn(), (str(VENV / "hypercorn"),))
NODE = ServerSpec("node-h2", "nodejs", _node(), ("node",))

SERVERS: Mapping[str, ServerSpec] = {
    "nginx": replace(NGINX, name="nginx-h2", programs=_nginx),
    "node": NODE,
    "hypercorn": HYPERCORN,
    "go": replace(GO, name="go-h2", programs=_told(GO.programs)),
    "hyper": replace(RUST, name="hyper-h2", programs=_told(RUST.programs)),
}
OVER_TLS: Mapping[str, ServerSpec] = {
    "nginx": replace(NGINX, name="nginx-h2-tls", programs=_nginx_tls),
    "node": replace(NODE, name="node-h2-tls", programs=zoo_tls._told(NODE.programs)),
    "hypercorn": replace(HYPERCORN, name="hypercorn-h2-tls", programs=_hypercorn_tls),
    "go": replace(GO, name="go-h2-tls", programs=zoo_tls._told(_told(GO.programs))),
    "hyper": replace(RUST, name="hyper-h2-tls", programs=zoo_tls._told(_told(RUST.programs))),
}


def node_with_table(size: int) -> ServerSpec:
    """Node as a server that lets its clients keep a header table of so many bytes."""
    return replace(NODE, name=f"node-h2-table-{size}", programs=_node(f"ZOO_HEADER_TABLE={size}"))


def client(name: str, *, tls: bool = False) -> ClientSpec:
    """A client that speaks HTTP/2 only."""
    if name in ("curl", "curl-upgrade"):
        spec = zoo_tls.client("curl") if tls else zoo.CLIENTS["curl"]
        wanted = "http2" if tls or name == "curl-upgrade" else "http2-prior-knowledge"
        return replace(spec, options=(*(line for line in spec.options if line != "http1.1"), wanted))
    if name == "node":
        spec = ClientSpec("node-http2", "nodejs", ("node", zoo._script("node/http2_client.js")), ("node",))
    else:
        spec = zoo.CLIENTS[{"httpx": "python-httpx", "go": "go-net-http"}[name]]
    made = zoo_tls.certificate()[0]
    told = ("env", f"ZOO_TLS_CA={made}", f"SSL_CERT_FILE={made}", f"NODE_EXTRA_CA_CERTS={made}") if tls else ()
    return replace(spec, command=(*told, *TOLD, *spec.command), scheme="https" if tls else "http")


CLIENTS = ("httpx", "node", "go")
"""By prior knowledge; curl 7.88 uses such a connection once, and is asked by upgrade and inside TLS."""


@contextlib.contextmanager
def h2load(
    port: int, plan: Sequence[PlannedRequest], directory: Path, *, connections: int, streams: int, requests: int,
    tls: bool = False,
) -> Iterator[zoo.Program]:  # fmt: skip
    """h2load over the GETs of a plan, again and again; it begins at once."""
    scheme = "https" if tls else "http"
    targets = directory / "targets"
    targets.write_text("".join(f"{scheme}://127.0.0.1:{port}{request.target}\n" for request in plan))
    command = ["h2load", "-c", str(connections), "-m", str(streams), "-n", str(requests), "-i", str(targets)]
    program = zoo.Program(command, directory, name="h2load", pipes=True)
    try:
        yield program
    finally:
        program.stop(grace_s=0.5)


def answered(program: zoo.Program, timeout_s: float = 120) -> tuple[int, int]:
    """How many requests h2load made, and how many of them succeeded, by its own account."""
    try:
        output, _ = program.process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise program.failure(f"it did not finish within {timeout_s:.0f} s") from None
    said = re.search(r"requests: (\d+) total, .* (\d+) done, (\d+) succeeded", output.decode())
    if said is None:
        raise program.failure(f"it said {output.decode()[-500:]!r}")
    return int(said[2]), int(said[3])
