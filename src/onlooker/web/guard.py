"""Who may talk to the listeners: every request passes here first.

On loopback the danger is a page of another site in the visitor's own browser: it may point its own name at 127.0.0.1
(DNS rebinding: the Host field tells), or send requests across sites (Origin and Sec-Fetch-Site tell).  Elsewhere a
bearer token decides.
"""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from aiohttp import web

from onlooker.errors import ConfigError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

_LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})

_SECURITY_FIELDS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

MAX_TARGET: Final = 8190
"""Bytes of a request line; aiohttp's own limit, named here because the tests hold it."""


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only mean this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") in _LOCAL_NAMES


def _hostname(authority: str) -> str:
    try:
        return urlsplit(authority).hostname or ""
    except ValueError:
        return ""


def check_source(request: web.Request, address: str) -> None:
    """Refuse what another site sends through a browser.

    Raises:
        HTTPForbidden: It does.
    """
    host_field = request.headers.get("Host", "")
    origin = request.headers.get("Origin")
    if is_loopback(address):
        if not is_loopback(_hostname(f"//{host_field}")):
            raise web.HTTPForbidden(text="this address answers to loopback names only\n")
        if origin is not None and not is_loopback(_hostname(origin)):
            raise web.HTTPForbidden(text="requests of other sites are refused\n")
    elif origin is not None and _hostname(origin) != _hostname(f"//{host_field}"):
        raise web.HTTPForbidden(text="requests of other sites are refused\n")
    if request.headers.get("Sec-Fetch-Site", "none") == "cross-site":
        # a link on another site may lead to the page, but nothing may be read or embedded from there
        if request.headers.get("Sec-Fetch-Mode") == "navigate" and request.path == "/":
            return
        raise web.HTTPForbidden(text="requests of other sites are refused\n")


def check_token(request: web.Request, token: str) -> None:
    """Ask for the bearer token.

    Raises:
        HTTPUnauthorized: It is not there, or wrong.
    """
    given = request.headers.get("Authorization", "")
    scheme, _, value = given.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(
        value.strip().encode("utf-8", "surrogateescape"), token.encode()
    ):
        raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="a bearer token is needed\n")


def guard(*, address: str, token: str, needs_token: Callable[[web.Request], bool] = lambda request: True) -> Middleware:
    """A middleware that turns away who should not be here, and sets the security fields of every answer."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ("GET", "HEAD"))
            check_source(request, address)
            if token and needs_token(request):
                check_token(request, token)
            response = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(_SECURITY_FIELDS)
            raise
        if not response.prepared:
            response.headers.update(_SECURITY_FIELDS)
        return response

    return check


def security_fields() -> dict[str, str]:
    """For answers that are begun by their handler: streams."""
    return dict(_SECURITY_FIELDS)


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
