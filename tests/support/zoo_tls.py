"""The zoo behind TLS: the same servers and clients, told by their environment to speak HTTPS.

The certificate is made for one run of the tests and is its own authority::

    with zoo.server(zoo_tls.SERVERS["nginx"]) as server, zoo.client(zoo_tls.client("curl"), ...) as client:
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from support import zoo
from support.zoo import BIN, ClientSpec, Place, ServerSpec
from support.zoo import CLIENTS as PLAIN_CLIENTS
from support.zoo import SERVERS as PLAIN_SERVERS

Programs = Callable[[Place], Mapping[str, Sequence[str]]]


@functools.cache
def certificate() -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, which workers that gave up root can read too."""
    directory = Path(tempfile.mkdtemp(prefix="zoo-tls-", dir="/tmp"))
    directory.chmod(0o755)
    made, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key),
         "-out", str(made)],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    key.chmod(0o644)
    return made, key


def _server_environment() -> list[str]:
    made, key = certificate()
    return ["env", f"ZOO_TLS_CERTIFICATE={made}", f"ZOO_TLS_KEY={key}"]


def _told(programs: Programs) -> Programs:
    """The same programs, with the certificate in their environment."""
    return lambda place: {name: [*_server_environment(), *command] for name, command in programs(place).items()}


def _own(name: str, **changes: object) -> ServerSpec:
    plain = PLAIN_SERVERS[name]
    return replace(plain, programs=_told(plain.programs), **changes)  # type: ignore[arg-type]


def _rustls(plain: ServerSpec) -> ServerSpec:
    """The same program, with rustls instead of OpenSSL."""

    def programs(place: Place) -> Mapping[str, Sequence[str]]:
        return {
            name: [*_server_environment(), "ZOO_TLS_LIBRARY=rustls", *command]
            for name, command in plain.programs(place).items()
        }

    return replace(plain, name="rust-rustls", programs=programs)


def _nginx(place: Place) -> Mapping[str, Sequence[str]]:
    made, key = certificate()
    return zoo._nginx(place, TLS=f" ssl;\n        ssl_certificate {made};\n        ssl_certificate_key {key}")


def _httpd(place: Place) -> Mapping[str, Sequence[str]]:
    made, key = certificate()
    modules = zoo.APACHE_MODULES
    lines = [
        f"LoadModule socache_shmcb_module {modules}/mod_socache_shmcb.so",
        f"LoadModule ssl_module {modules}/mod_ssl.so",
        "SSLEngine on", f"SSLCertificateFile {made}", f"SSLCertificateKeyFile {key}", "SSLSessionCache none",
    ]  # fmt: skip
    return zoo._httpd(place, TLS="\n".join(lines))


def _gunicorn(*options: str) -> Programs:
    def programs(place: Place) -> Mapping[str, Sequence[str]]:
        made, key = certificate()
        return zoo._gunicorn("--certfile", str(made), "--keyfile", str(key), *options)(place)

    return programs


def _uvicorn(*options: str) -> Programs:
    def programs(place: Place) -> Mapping[str, Sequence[str]]:
        made, key = certificate()
        return zoo._uvicorn("--ssl-certfile", str(made), "--ssl-keyfile", str(key), *options)(place)

    return programs


def _puma(place: Place) -> Mapping[str, Sequence[str]]:
    made, key = certificate()
    bind = f"ssl://127.0.0.1:{place.port}?cert={made}&key={key}&verify_mode=none"
    return {"puma": ["puma", "-b", bind, "-t", "4:4", "-e", "production", "--quiet", zoo._script("ruby/config.ru")]}


SERVERS: Mapping[str, ServerSpec] = {
    spec.name: spec
    for spec in (
        replace(PLAIN_SERVERS["nginx"], programs=_nginx),
        replace(PLAIN_SERVERS["httpd"], programs=_httpd),
        _own("python-http-server"),
        replace(PLAIN_SERVERS["flask-gunicorn-sync"], programs=_gunicorn("--workers", "1")),
        replace(
            PLAIN_SERVERS["flask-gunicorn-gthread"],
            programs=_gunicorn("--worker-class", "gthread", "--workers", "1", "--threads", "8"),
        ),
        replace(PLAIN_SERVERS["fastapi-uvicorn"], programs=_uvicorn("--loop", "asyncio", "--http", "h11")),
        replace(PLAIN_SERVERS["fastapi-uvloop"], programs=_uvicorn("--loop", "uvloop", "--http", "httptools")),
        _own("aiohttp"),
        _own("node-http"),
        _own("go-net-http"),
        _own("rust-hyper"),
        _rustls(PLAIN_SERVERS["rust-hyper"]),
        replace(PLAIN_SERVERS["ruby-puma"], programs=_puma),
        _own("ruby-webrick"),
        replace(
            PLAIN_SERVERS["c-threads"],
            name="c-gnutls",
            programs=_told(zoo._own(str(BIN / "c-server-gnutls"))),
            needs=(str(BIN / "c-server-gnutls"),),
        ),
    )
}


def client(name: str) -> ClientSpec:
    """A client that trusts the zoo's certificate and speaks HTTPS."""
    plain, (made, _) = PLAIN_CLIENTS[name], certificate()
    told = ("env", f"ZOO_TLS_CA={made}", f"SSL_CERT_FILE={made}", f"NODE_EXTRA_CA_CERTS={made}", *plain.command)
    if name.startswith("curl"):
        return replace(plain, scheme="https", options=(f'cacert = "{made}"', "http1.1"))
    return replace(plain, command=told, scheme="https")


CLIENTS = (
    "curl", "python-requests", "python-urllib3", "python-httpx", "python-aiohttp", "node-http", "node-fetch",
    "go-net-http", "ruby-net-http", "rust-reqwest",
)  # fmt: skip
