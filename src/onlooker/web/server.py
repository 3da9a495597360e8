"""The web server: metrics and health.  Loopback unless told otherwise; every listener checks the Host field."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import web

from onlooker.errors import ConfigError
from onlooker.export import prometheus
from onlooker.observe import snapshots
from onlooker.settings import prometheus_options

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from onlooker.agent import Agent

_LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only mean this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in _LOCAL_NAMES


def guard(*, address: str, token: str) -> object:
    """A middleware that turns away who should not be here.

    A page of another site may point its own name at 127.0.0.1 (DNS rebinding): on loopback the Host field has to be a
    loopback name, and an Origin, if there is one, too.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_loopback(address):
            host = urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
            origin = request.headers.get("Origin")
            if not is_loopback(host) or (origin and not is_loopback(urlsplit(origin).hostname or "")):
                raise web.HTTPForbidden(text="this address answers to loopback names only\n")
        if token:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), token.encode()):
                raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="a bearer token is needed\n")
        response = await handler(request)
        return response

    return check


def tls_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """For serving TLS, or None.

    Raises:
        ConfigError: the files cannot be used.
    """
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as err:
        raise ConfigError(f"cannot use the certificate {certificate}: {err}") from err
    return context


class WebServer:
    """The listeners that the configuration asks for.

    Attributes:
        endpoints: What is served where, for people.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._runners: list[web.AppRunner] = []
        self.endpoints: list[tuple[str, str]] = []

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: a port is taken, or an address is public and nothing protects it.
        """
        config = self._agent.loaded.config
        page, scrape, health = config.web, config.prometheus_export, config.health_check
        if page.port:
            app = self._app(page.address, page.token)
            self._metrics(app, "/metrics")
            self._health(app)
            where = await self._listen(app, page.address, page.port, page.tls_cert, page.tls_key, page.token,
                                       allow_public=page.allow_public, key="web.port")  # fmt: skip
            if not scrape.port:
                self.endpoints.append(("Prometheus", f"{where}/metrics"))
        if scrape.port:
            app = self._app(scrape.address, scrape.token)
            self._metrics(app, scrape.path)
            where = await self._listen(app, scrape.address, scrape.port, scrape.tls_cert, scrape.tls_key, scrape.token,
                                       allow_public=True, key="prometheus_export.port")  # fmt: skip
            self.endpoints.append(("Prometheus", f"{where}{scrape.path}"))
        if health.port:
            app = self._app(health.listen_address, "")
            self._health(app)
            await self._listen(app, health.listen_address, health.port, "", "", "", allow_public=True,
                               key="health_check.port")  # fmt: skip

    async def stop(self) -> None:
        """Close the listeners and the connections."""
        for runner in self._runners:
            await runner.cleanup()

    def _app(self, address: str, token: str) -> web.Application:
        return web.Application(middlewares=[guard(address=address, token=token)])  # type: ignore[list-item]  # typed loosely there

    def _metrics(self, app: web.Application, path: str) -> None:
        handler = prometheus.handler(lambda: snapshots(self._agent), prometheus_options(self._agent.loaded.config))
        app.router.add_get(path, handler)

    def _health(self, app: web.Application) -> None:
        async def health(_request: web.Request) -> web.Response:
            now = time.time_ns()
            alive = self._agent.failure is None
            return web.json_response(
                {
                    "schema_version": 1,
                    "now_unix_ns": now,
                    "process_uptime_ns": now - self._agent.started_unix_ns,
                    "healthy": alive,
                },
                status=200 if alive else 503,
            )

        app.router.add_get("/healthz", health)
        app.router.add_get("/readyz", health)

    async def _listen(
        self, app: web.Application, address: str, port: int, certificate: str, key_file: str, token: str, *,
        allow_public: bool, key: str,
    ) -> str:  # fmt: skip
        if not is_loopback(address) and not token and not allow_public:
            raise ConfigError(
                f"{address} can be reached from elsewhere and no token protects it; set web.token, or "
                "web.allow_public: true",
                place="web.address",
            )
        context = tls_context(certificate, key_file)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, address, port, ssl_context=context).start()
        except OSError as err:
            raise ConfigError(f"cannot listen on {address}:{port}: {err.strerror or err}", place=key) from err
        shown = f"[{address}]" if ":" in address else address
        return f"{'https' if context else 'http'}://{shown}:{port}"
