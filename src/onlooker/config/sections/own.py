"""What the incumbent has no keys for: ``web``, ``store`` and ``limits``."""

from __future__ import annotations

from typing import Annotated

from onlooker.config.keys import Key, Section
from onlooker.config.kinds import BOOL, COUNT, DURATION, PORT, SIZE, TEXT, Number


class Web(Section, frozen=True):
    """The page and its API."""

    port: Annotated[int, Key(PORT, "Port of the page; 0 for no page.")] = 9700
    address: Annotated[
        str, Key(TEXT, "Address of the page. Any but loopback needs a token, or `web.allow_public`.")
    ] = "127.0.0.1"
    token: Annotated[str, Key(TEXT, "Bearer token that a visitor must show.", secret=True)] = ""
    tls_cert: Annotated[str, Key(TEXT, "Certificate (PEM), to serve TLS.")] = ""
    tls_key: Annotated[str, Key(TEXT, "Its key (PEM).")] = ""
    allow_public: Annotated[bool, Key(BOOL, "Serve other addresses than loopback without a token.")] = False


class Store(Section, frozen=True):
    """The embedded store behind the page."""

    enabled: Annotated[bool, Key(BOOL, "Keep traces and metrics on disk; the flag `--no-store` turns it off.")] = True
    path: Annotated[
        str,
        Key(TEXT, "Its file; unset for `store.sqlite` in systemd's `$STATE_DIRECTORY`, else in "
            "`/var/lib/onlooker` as root, "
            "else in `$XDG_STATE_HOME/onlooker`."),
    ] = ""  # fmt: skip
    max_bytes: Annotated[int, Key(SIZE, "Largest size on disk.")] = 512_000_000
    max_age: Annotated[float, Key(DURATION, "How long anything is kept.")] = 86_400.0


class Limits(Section, frozen=True):
    """What onlooker may use."""

    series: Annotated[int, Key(COUNT, "Series kept; further ones are summed in one overflow series.")] = 10_000
    cpu_percent: Annotated[
        float,
        Key(
            Number(),
            "Share of one core, in percent, beyond which spans are shed, whole traces at a time; counts never are. "
            "0 for off.",
        ),
    ] = 0.0
    memory: Annotated[
        int, Key(SIZE, "Resident memory beyond which spans are shed, as for `limits.cpu_percent`; 0 for off.")
    ] = 0
    span_queue_bytes: Annotated[int, Key(SIZE, "Memory of spans that wait for an exporter.")] = 16_000_000
