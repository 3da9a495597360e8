"""The built page: a handful of files, read once, served from memory.  No path of a request ever reaches the disk."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".png": "image/png", ".woff2": "font/woff2", ".webmanifest": "application/manifest+json",
}  # fmt: skip
_LARGEST: Final = 2 << 20
_MISSING: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>onlooker</title><h1>onlooker</h1>"
    "<p>The page was not built into this copy: run <code>make web</code>. The API is at "
    "<a href=/api/v1/openapi.json>/api/v1/openapi.json</a>."
)


@dataclass(frozen=True, slots=True)
class _Asset:
    body: bytes
    packed: bytes
    kind: str
    tag: str
    lasting: bool


class Assets:
    """The files of the page by their path in a URL."""

    def __init__(self, root: Path = STATIC) -> None:
        self._files: dict[str, _Asset] = {}
        if root.is_dir():
            for path in sorted(root.rglob("*")):
                kind = _TYPES.get(path.suffix)
                if kind and path.is_file() and path.stat().st_size <= _LARGEST:
                    name = "/" + path.relative_to(root).as_posix()
                    self._files[name] = _asset(path.read_bytes(), kind, lasting=name.startswith("/assets/"))
        self._files.setdefault("/index.html", _asset(_MISSING.encode(), _TYPES[".html"], lasting=False))

    def add_routes(self, app: web.Application) -> None:
        """Serve them; the page's own paths all begin at ``/``."""
        app.router.add_get("/", self._serve)
        for name in self._files:
            app.router.add_get(name, self._serve)

    def __contains__(self, path: str) -> bool:
        return path == "/" or path in self._files

    async def _serve(self, request: web.Request) -> web.Response:
        asset = self._files["/index.html" if request.path == "/" else request.path]
        headers = {
            "Content-Type": asset.kind,
            "ETag": asset.tag,
            "Vary": "Accept-Encoding",
            # names of assets change with their content
            "Cache-Control": "public, max-age=31536000, immutable" if asset.lasting else "no-cache",
        }
        if request.headers.get("If-None-Match") == asset.tag:
            return web.Response(status=304, headers=headers)
        if asset.packed and "gzip" in request.headers.get("Accept-Encoding", "").lower():
            headers["Content-Encoding"] = "gzip"
            return web.Response(body=asset.packed, headers=headers)
        return web.Response(body=asset.body or gzip.decompress(asset.packed), headers=headers)


def _asset(body: bytes, kind: str, *, lasting: bool) -> _Asset:
    packed = gzip.compress(body, 9, mtime=0) if len(body) > 1024 and "png" not in kind else b""
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    # browsers take the packed one; the plain one need not be held too
    return _Asset(b"" if packed else body, packed, kind, tag, lasting)
