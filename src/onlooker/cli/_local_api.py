"""A client of a running onlooker's API: for the terminal views, which are processes of their own."""

from __future__ import annotations

import http.client
import ipaddress
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from onlooker.config.sections.own import Web
from onlooker.errors import AgentError

_LARGEST: Final = 32 << 20


def url_of(web: Web) -> str:
    """The address of the page of an onlooker with this section ``web``, as this host reaches it."""
    host = f"[{web.address}]" if ":" in web.address else web.address
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"{'https' if web.tls_cert else 'http'}://{host}:{web.port}"


class LocalApi:
    """Questions to one onlooker.

    Args:
        url: Where it is, such as ``http://127.0.0.1:9700``.
        token: Its bearer token, "" if it asks for none.
    """

    def __init__(self, url: str, token: str = "", *, timeout_s: float = 5.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AgentError(f"{url} is no address of an onlooker; such as http://127.0.0.1:9700")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._path = parts.path.rstrip("/")
        self._fields = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s

    def _connect(self, timeout_s: float | None) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        context = ssl.create_default_context()
        if _is_loopback(self._host):
            # the certificate of a page names the host for others, not its loopback address; nobody can be between
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=context)

    @contextmanager
    def _ask(
        self, path: str, query: Mapping[str, str] | None, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connect(timeout_s)
        target = f"{self._path}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            connection.request("GET", target, headers=self._fields)
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(2000).decode("utf-8", "replace").strip()
                with suppress(ValueError, KeyError, TypeError):
                    text = str(json.loads(text)["error"])
                raise AgentError(f"{self.url} answers {response.status}: {text or response.reason}")
            yield response
        except (OSError, http.client.HTTPException) as err:
            reason = err.strerror if isinstance(err, OSError) and err.strerror else err
            raise AgentError(
                f"no onlooker answers at {self.url}: {reason}; start one with `onlooker run`, or name it with --url"
            ) from err
        finally:
            connection.close()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """One answer.

        Raises:
            AgentError: there is none.
        """
        with self._ask(path, query, self._timeout_s) as response:
            data = response.read(_LARGEST)
        try:
            found = json.loads(data)
        except ValueError as err:
            raise AgentError(f"what answers at {self.url} is no onlooker") from err
        if not isinstance(found, dict):
            raise AgentError(f"what answers at {self.url} is no onlooker")
        return found

    def text(self, path: str) -> str:
        """An answer that is no JSON.

        Raises:
            AgentError: there is none.
        """
        with self._ask(path, None, self._timeout_s) as response:
            return response.read(_LARGEST).decode("utf-8", "replace")

    def events(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Server-sent events until the other side ends them.

        Raises:
            AgentError: it cannot be reached, or the connection breaks.
        """
        with self._ask(path, query, 30.0) as response:
            event = ""
            while line := response.readline(_LARGEST):
                text = line.decode("utf-8", "replace").rstrip("\n")
                if text.startswith("event: "):
                    event = text[7:]
                elif text.startswith("data: "):
                    yield event, json.loads(text[6:])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
