"""The web server: the page, its API, metrics and health.  Loopback unless told otherwise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aiohttp import web

from onlooker.errors import ConfigError
from onlooker.export import prometheus
from onlooker.observe import snapshots
from onlooker.settings import prometheus_options
from onlooker.store import Store
from onlooker.web.api import Api
from onlooker.web.assets import Assets
from onlooker.web.facts import Facts
from onlooker.web.guard import guard, is_loopback, tls_context

if TYPE_CHECKING:
    from onlooker.agent import Agent

_HEADER_BYTES: Final = 16_384
_IDLE_S: Final = 75.0


class WebServer:
    """The listeners that the configuration asks for.

    Attributes:
        endpoints: What is served where, for people.
    """

    def __init__(self, agent: Agent, store: Store | None = None) -> None:
        self._agent = agent
        self._store = store
        self._runners: list[web.AppRunner] = []
        self._api: Api | None = None
        self.endpoints: list[tuple[str, str]] = []

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: a port is taken, or an address is public and nothing protects it.
        """
        config = self._agent.loaded.config
        page, scrape, health = config.web, config.prometheus_export, config.health_check
        if page.port:
            assets = Assets()
            # the page itself holds no data, so that it can ask for the token
            app = web.Application(
                middlewares=[
                    guard(
                        address=page.address, token=page.token, needs_token=lambda request: request.path not in assets
                    )
                ],
                client_max_size=1024,
            )
            self._metrics(app, "/metrics")
            self._health(app)
            if self._store is not None:
                self._api = Api(self._store, Facts(self._agent))
                self._api.add_routes(app)
                assets.add_routes(app)
            where = await self._listen(app, page.address, page.port, page.tls_cert, page.tls_key, page.token,
                                       allow_public=page.allow_public, key="web.port")  # fmt: skip
            if self._store is not None:
                self.endpoints.append(("Page", f"{where}/"))
            if not scrape.port:
                self.endpoints.append(("Prometheus", f"{where}/metrics"))
        if scrape.port:
            app = web.Application(middlewares=[guard(address=scrape.address, token=scrape.token)])
            self._metrics(app, scrape.path)
            where = await self._listen(app, scrape.address, scrape.port, scrape.tls_cert, scrape.tls_key, scrape.token,
                                       allow_public=True, key="prometheus_export.port")  # fmt: skip
            self.endpoints.append(("Prometheus", f"{where}{scrape.path}"))
        if health.port:
            app = web.Application(middlewares=[guard(address=health.listen_address, token="")])
            self._health(app)
            await self._listen(app, health.listen_address, health.port, "", "", "", allow_public=True,
                               key="health_check.port")  # fmt: skip

    async def stop(self) -> None:
        """Close the listeners and the connections."""
        if self._api is not None:
            await self._api.close()
        for runner in self._runners:
            await runner.cleanup()

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
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_IDLE_S, max_field_size=_HEADER_BYTES,
            lingering_time=1.0,
        )  # fmt: skip
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, address, port, ssl_context=context, backlog=64).start()
        except OSError as err:
            raise ConfigError(f"cannot listen on {address}:{port}: {err.strerror or err}", place=key) from err
        shown = f"[{address}]" if ":" in address else address
        return f"{'https' if context else 'http'}://{shown}:{port}"
